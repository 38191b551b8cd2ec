//! What every answer goes through on its way out: the audit, and what a tenant must not be told.

use std::{any::Any, collections::HashMap, sync::LazyLock};

use berth_ownership::Reason;
use berth_proto::v1;

use super::tenant;
use crate::{
    audit,
    model::{ApiError, Call, Caller, Role},
};

/// Calls by the names of their methods.
static CALLS: LazyLock<HashMap<String, Call>> = LazyLock::new(|| {
    let named = Call::ALL.iter().filter_map(|call| {
        let (_, method) = call.row().rpc?.split_once('/')?;
        Some((snake(method), *call))
    });
    named.collect()
});

fn snake(method: &str) -> String {
    let mut text = String::new();
    for (at, letter) in method.chars().enumerate() {
        if at > 0 && letter.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// An answer on its way to whoever called a method.
pub(crate) fn served<T: 'static>(
    caller: &Caller,
    method: &str,
    answer: Result<T, ApiError>,
) -> Result<T, ApiError> {
    let row = CALLS.get(method).map(|call| call.row());
    let words = row.map_or("call", |row| row.words);
    let changes = row.is_some_and(|row| row.least > Role::Viewer);
    match answer {
        Ok(message) => {
            if changes {
                audit::changed(caller, words, &object_of(&message));
            }
            Ok(message)
        }
        Err(error) => {
            let denied = matches!(
                error.reason(),
                Reason::PermissionDenied | Reason::NotForYou | Reason::Unauthenticated
            );
            if changes || denied {
                audit::refused(caller, words, &error);
            }
            Err(tenant::conceal(caller, error))
        }
    }
}

/// What an answer is about.
fn object_of(message: &dyn Any) -> String {
    let of_device = |address: &Option<v1::DeviceAddress>| match address {
        Some(v1::DeviceAddress { kind: Some(v1::device_address::Kind::Pci(pci)) }) => pci.clone(),
        _ => String::new(),
    };
    if let Some(made) = message.downcast_ref::<v1::Reservation>() {
        return made.id.clone();
    }
    if let Some(domain) = message.downcast_ref::<v1::Domain>() {
        return domain.id.clone();
    }
    if let Some(device) = message.downcast_ref::<v1::Device>() {
        return of_device(&device.address);
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_the_names_of_their_calls() {
        for (method, call) in [
            ("reserve", Call::Reserve),
            ("set_kernel_dma", Call::SetKernelDma),
            ("list_groups", Call::ListGroups),
        ] {
            assert_eq!(CALLS.get(method), Some(&call), "{method}");
        }
    }
}
