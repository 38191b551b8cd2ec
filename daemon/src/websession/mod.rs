//! Sessions of browsers: how the page, which TCP serves for reading, changes things.
//!
//! Who may connect to a unix socket gets a link by it, once. The page of that link makes a session of
//! it on a listener on loopback. A session acts as who asked for its link, with no more than that
//! caller may at the moment of each call.

mod door;
mod secret;
mod table;

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use berth_ownership::{Reason, Refusal};
use rustix::time::{ClockId, clock_gettime};

use self::table::{Found, Ground, Shown, Table};
pub(crate) use self::{
    door::{Checked, PATH, Shows, check},
    table::SIGN_IN,
};
use crate::{
    config::{Access, Web},
    listen::{Admission, UnixPeer},
    model::{ApiError, Caller, Live, Origin, Transport},
};

/// What has to be known of the daemon.
#[derive(Debug)]
pub(crate) struct House {
    /// Where the page is served on loopback.
    pub(crate) pages: Vec<SocketAddr>,
    /// Unix sockets of the API with their rules.
    pub(crate) rules: Vec<(String, Live<Access>)>,
    /// Whether something beside the listeners' rules is about groups.
    pub(crate) asks_for_groups: Live<bool>,
}

/// All sessions, and the links that may become one.
#[derive(Debug, Default)]
pub struct WebSessions {
    house: OnceLock<House>,
    settings: Live<Web>,
    table: Mutex<Table>,
}

/// A link that was made.
#[derive(Debug)]
pub(crate) struct Link {
    /// With its secret.
    pub(crate) url: String,
    /// Until when it opens a session.
    pub(crate) until_unix_ms: u64,
}

/// What the page is told of its session.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct State {
    identity: String,
    role: &'static str,
    label: String,
    idle_left_ms: u64,
    left_ms: u64,
}

/// A session that was opened: the cookie's secret, the page's, and what it is.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) cookie: String,
    pub(crate) csrf: String,
    pub(crate) state: State,
    /// As whom it acts.
    pub(crate) caller: Caller,
}

impl WebSessions {
    /// With these settings, which may change.
    #[must_use]
    pub fn new(settings: Web) -> Self {
        Self { settings: Live::new(settings), ..Self::default() }
    }

    /// How long they last, and how many there are.
    #[must_use]
    pub fn settings(&self) -> &Live<Web> {
        &self.settings
    }

    /// How many there are, with the links that may become one.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.table().len()
    }

    /// Says what the daemon serves, once it is known.
    pub(crate) fn serve(&self, house: House) {
        // Only who starts a daemon says it, once.
        let _ = self.house.set(house);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A link for a caller on a unix socket.
    ///
    /// # Errors
    /// The page isn't served on loopback, or there are too many sessions.
    pub(crate) fn link(&self, caller: &Caller) -> Result<Link, ApiError> {
        let house = self.house.get();
        let page = house.and_then(|house| house.pages.first()).ok_or_else(no_page)?;
        let ground = house.and_then(|house| house.ground(caller)).ok_or_else(|| {
            let text = "it is not known by which unix socket you came";
            ApiError::internal("listener", text)
        })?;
        let web = **self.settings.get();
        let token = self.table().link(ground, &web, now_ms())?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        Ok(Link {
            url: format!("http://{page}/#/sign-in/{token}"),
            until_unix_ms: now.saturating_add(web.link_ms),
        })
    }

    /// Makes a session of a link's secret.
    ///
    /// # Errors
    /// It opens nothing, or its caller may not connect any more.
    pub(crate) fn open(&self, token: &str, page: Option<&Origin>) -> Result<Opened, ApiError> {
        let web = **self.settings.get();
        let opened = self.table().open(token, &web, now_ms()).ok_or_else(table::no_link)?;
        let table::Opened { cookie, csrf, found } = opened;
        let caller = self.caller(&found, page)?;
        Ok(Opened { cookie, csrf, state: state(&caller, &found), caller })
    }

    /// As whom the session that a request shows acts, for a change.
    ///
    /// # Errors
    /// There is none, or its caller may not connect any more.
    pub(crate) fn admit(
        &self,
        shows: &Shows,
        page: Option<&Origin>,
    ) -> Result<Admission, ApiError> {
        let (caller, _) = self.found(shows, page, true)?;
        Ok(Admission::of(caller))
    }

    /// What the page is told of the session that a request shows.
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub(crate) fn look(&self, shows: &Shows) -> Result<State, ApiError> {
        let (caller, found) = self.found(shows, None, false)?;
        Ok(state(&caller, &found))
    }

    /// The session that a request shows, and its caller. One that has lost its ground ends.
    fn found(
        &self,
        shows: &Shows,
        page: Option<&Origin>,
        changes: bool,
    ) -> Result<(Caller, Found), ApiError> {
        let web = **self.settings.get();
        let found = self.table().find(shows.shown(), &web, now_ms(), changes)?;
        match self.caller(&found, page) {
            Ok(caller) => Ok((caller, found)),
            Err(error) => {
                // It may be gone meanwhile, which is what is wanted.
                let _ = self.close(shows);
                Err(error)
            }
        }
    }

    /// Ends the session that a request shows; whose it was.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn close(&self, shows: &Shows) -> Result<String, ApiError> {
        let web = **self.settings.get();
        let ground = self.table().close(shows.shown(), &web, now_ms())?;
        Ok(format!("uid:{}", ground.peer.uid))
    }

    /// The caller by the rules that count now, never with more than it had.
    fn caller(&self, found: &Found, page: Option<&Origin>) -> Result<Caller, ApiError> {
        let Ground { listener, peer, with_groups, role, tenant } = &found.ground;
        let house = self.house.get().ok_or_else(table::no_session)?;
        let rules = house.rules.iter().find(|(at, _)| at == listener);
        let access = rules.map(|(_, access)| access.get()).ok_or_else(table::no_session)?;
        if !with_groups && house.asks_for_groups(&access) {
            return Err(changed("rules are about groups now, which weren't asked for then"));
        }
        let admission = Admission::unix(&access, listener, peer);
        let now = admission.caller().map_err(|_| changed("its caller may not connect any more"))?;
        if now.tenant.as_deref() != tenant.as_deref() {
            return Err(changed("its caller is under another label now"));
        }
        let ground = now.origin.as_deref().map_or("", |origin| origin.rule.as_str());
        let origin = Origin {
            listener: page.map_or_else(String::new, |page| page.listener.clone()),
            peer: page.and_then(|page| page.peer.clone()),
            rule: format!("web session of {listener}, {ground}"),
        };
        let role = now.role.min(*role);
        let transport = Transport::Web;
        Ok(Caller { role, transport, pid: None, ..now.clone() }.through(origin))
    }
}

impl House {
    fn asks_for_groups(&self, access: &Access) -> bool {
        access.asks_for_groups() || **self.asks_for_groups.get()
    }

    /// By what a caller has its role.
    fn ground(&self, caller: &Caller) -> Option<Ground> {
        let at = &caller.origin.as_deref()?.listener;
        let (listener, access) = self.rules.iter().find(|(known, _)| known == at)?;
        Some(Ground {
            listener: listener.clone(),
            peer: UnixPeer { uid: caller.uid?, pid: caller.pid, gids: caller.gids.to_vec() },
            with_groups: self.asks_for_groups(&access.get()),
            role: caller.role,
            tenant: caller.tenant.as_deref().map(str::to_owned),
        })
    }
}

fn state(caller: &Caller, found: &Found) -> State {
    State {
        identity: caller.identity.clone(),
        role: caller.role.name(),
        label: caller.tenant.as_deref().unwrap_or_default().to_owned(),
        idle_left_ms: found.idle_left_ms,
        left_ms: found.left_ms,
    }
}

fn changed(why: &str) -> ApiError {
    let text = format!("the session is good for nothing any more: {why}");
    let way_out = format!("sign in again: {SIGN_IN}");
    Refusal::new(Reason::Unauthenticated, "session", text).with_resolve(vec![way_out]).into()
}

fn no_page() -> ApiError {
    let text = "berthd serves no page on loopback, where a browser could sign in";
    let way_out = "let it listen at 127.0.0.1:7711: --listen-http 127.0.0.1:7711, or a [[listen]] of \
                   berthd.toml with serve = \"http\" and that address";
    let refusal = Refusal::new(Reason::Unsupported, "page", text);
    refusal.with_resolve(vec![way_out.to_owned()]).into()
}

/// Time that goes on while the machine sleeps.
fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000)
}
