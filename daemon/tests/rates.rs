//! Rates: whoever calls too often is told when to come again, and keeps nobody else waiting.

mod front_support;

use berth_ownership::Reason;
use berth_proto::v1;
use front_support::Running;
use serde_json::json;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

/// So rare that nothing is refilled while a test runs.
const SLOW: &str = "[[rate]]\nreads_per_s = 1\nreads_burst = 20\ncommands_per_s = 1\n\
                    commands_burst = 3\n";

#[tokio::test(flavor = "multi_thread")]
async fn http_says_429_and_when_to_come_again() {
    let running = Running::with(SLOW).await;
    let mut refused = None;
    for _ in 0..200 {
        let answer = running.unix("GET", "/api/v1/groups", None).await;
        if answer.status != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a flood is refused");
    assert_eq!(refused.status, 429, "{refused:?}");
    let wait: u64 = refused.header("retry-after").expect("when").parse().expect("seconds");
    assert!((1..=2).contains(&wait), "{refused:?}");
    let problem = refused.problem();
    assert_eq!(problem["reason"], "RATE_LIMITED", "{problem}");
    assert!(problem["detail"].to_string().contains("berthd.toml:1"), "{problem}");
    // Commands are counted by themselves: the first is taken, whatever becomes of it.
    let nothing = running.unix("POST", "/api/v1/reservations", Some(&json!({}))).await;
    assert_eq!(nothing.status, 400, "{nothing:?}");
    assert_eq!(running.unix("GET", "/healthz", None).await.status, 200, "health is never counted");
    // Somebody on TCP is somebody else.
    let other = running.tcp_raw("GET", "/metrics", "localhost", "").await;
    assert_eq!(other.status, 200, "{other:?}");
    let counted = other.body.lines().find_map(|it| it.strip_prefix("berth_rate_limited_total "));
    assert!(counted.and_then(|count| count.parse::<u64>().ok()).is_some_and(|n| n >= 1));
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_says_resource_exhausted_and_when_to_come_again() {
    let running = Running::with(SLOW).await;
    let channel = running.channel().await;
    let mut reservations = v1::reservations_client::ReservationsClient::new(channel.clone());
    let mut refused = None;
    for _ in 0..50 {
        let answer = reservations.reserve(v1::ReserveRequest::default()).await;
        let status = answer.expect_err("there is nothing in it");
        if status.code() != Code::InvalidArgument {
            refused = Some(status);
            break;
        }
    }
    let status = refused.expect("a flood is refused");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let info = status.get_details_error_info().expect("an ErrorInfo");
    assert_eq!(info.reason, Reason::RateLimited.name());
    let retry = status.get_details_retry_info().expect("a RetryInfo").retry_delay;
    assert!(retry.is_some_and(|delay| delay.as_millis() <= 1_000), "{retry:?}");
    let mut groups = v1::groups_client::GroupsClient::new(channel.clone());
    groups.list_groups(v1::ListGroupsRequest {}).await.expect("reads have a bucket of their own");
    let mut health = HealthClient::new(channel);
    for _ in 0..100 {
        health.check(HealthCheckRequest::default()).await.expect("health is never counted");
    }
    running.daemon.stop().await;
}
