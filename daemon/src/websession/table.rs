//! Links and sessions, in memory: they end with the daemon.

use super::secret::{Hash, fresh};
use crate::{
    config::Web,
    listen::UnixPeer,
    model::{ApiError, Role},
};
use berth_ownership::{Reason, Refusal};

/// How many of each one identity has: a further one ends its oldest.
const OF_ONE: usize = 4;

/// By what somebody got a link: what a session may is found out by it again at each call.
#[derive(Debug, Clone)]
pub(super) struct Ground {
    /// The unix socket that the caller came by.
    pub(super) listener: String,
    /// Who the kernel said it is.
    pub(super) peer: UnixPeer,
    /// Whether its groups were asked for.
    pub(super) with_groups: bool,
    /// The role then: never more.
    pub(super) role: Role,
    /// The label then: never another.
    pub(super) tenant: Option<String>,
}

#[derive(Debug)]
struct Link {
    token: Hash,
    ground: Ground,
    until_ms: u64,
}

#[derive(Debug)]
struct Session {
    cookie: Hash,
    csrf: Hash,
    ground: Ground,
    begun_ms: u64,
    used_ms: u64,
}

impl Session {
    fn left_ms(&self, web: &Web, now_ms: u64) -> (u64, u64) {
        let idle = self.used_ms.saturating_add(web.idle_ms).saturating_sub(now_ms);
        let whole = self.begun_ms.saturating_add(web.session_ms).saturating_sub(now_ms);
        (idle.min(whole), whole)
    }
}

/// A session that was just opened, with the secrets that are told once.
#[derive(Debug)]
pub(super) struct Opened {
    /// For the cookie.
    pub(super) cookie: String,
    /// For the page's own header.
    pub(super) csrf: String,
    /// As whom it acts.
    pub(super) found: Found,
}

/// A session that there is.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) ground: Ground,
    /// How long it lasts if nothing is changed by it.
    pub(super) idle_left_ms: u64,
    /// How long it lasts at most.
    pub(super) left_ms: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Table {
    links: Vec<Link>,
    sessions: Vec<Session>,
}

/// What a browser shows of its session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown<'a> {
    /// Cookies of the session's name: other servers of this machine may set some, too.
    pub(super) cookies: &'a [String],
    /// What the page alone knows.
    pub(super) csrf: Option<&'a str>,
}

impl Table {
    /// How many there are, and links that may become one.
    pub(super) fn len(&self) -> usize {
        self.links.len() + self.sessions.len()
    }

    /// A fresh link.
    pub(super) fn link(
        &mut self,
        ground: Ground,
        web: &Web,
        now_ms: u64,
    ) -> Result<String, ApiError> {
        self.sweep(web, now_ms);
        let own = |link: &Link| link.ground.peer.uid == ground.peer.uid;
        while self.links.iter().filter(|link| own(link)).count() >= OF_ONE {
            let Some(oldest) = self.links.iter().position(own) else { break };
            self.links.remove(oldest);
        }
        if self.len() >= web.sessions {
            return Err(full(web));
        }
        let (token, hash) = fresh();
        let until_ms = now_ms.saturating_add(web.link_ms);
        self.links.push(Link { token: hash, ground, until_ms });
        Ok(token)
    }

    /// Makes a session of a link, which is used up by it.
    pub(super) fn open(&mut self, token: &str, web: &Web, now_ms: u64) -> Option<Opened> {
        self.sweep(web, now_ms);
        let token = Hash::of(token);
        let at = last(self.links.iter().map(|link| link.token.is(&token)))?;
        let ground = self.links.remove(at).ground;
        let own = |session: &Session| session.ground.peer.uid == ground.peer.uid;
        while self.sessions.iter().filter(|session| own(session)).count() >= OF_ONE {
            let Some(oldest) = self.sessions.iter().position(own) else { break };
            self.sessions.remove(oldest);
        }
        let ((cookie, cookie_hash), (csrf, csrf_hash)) = (fresh(), fresh());
        let session = Session {
            cookie: cookie_hash,
            csrf: csrf_hash,
            ground: ground.clone(),
            begun_ms: now_ms,
            used_ms: now_ms,
        };
        let (idle_left_ms, left_ms) = session.left_ms(web, now_ms);
        self.sessions.push(session);
        Some(Opened { cookie, csrf, found: Found { ground, idle_left_ms, left_ms } })
    }

    /// The session of a browser. A change begins its idle time anew.
    pub(super) fn find(
        &mut self,
        shown: Shown<'_>,
        web: &Web,
        now_ms: u64,
        changes: bool,
    ) -> Result<Found, ApiError> {
        let session = self.session(shown, web, now_ms)?;
        if changes {
            session.used_ms = now_ms;
        }
        let (idle_left_ms, left_ms) = session.left_ms(web, now_ms);
        Ok(Found { ground: session.ground.clone(), idle_left_ms, left_ms })
    }

    /// Ends the session of a browser.
    pub(super) fn close(
        &mut self,
        shown: Shown<'_>,
        web: &Web,
        now_ms: u64,
    ) -> Result<Ground, ApiError> {
        let cookie = self.session(shown, web, now_ms)?.cookie;
        let at = last(self.sessions.iter().map(|session| session.cookie.is(&cookie)));
        match at {
            Some(at) => Ok(self.sessions.remove(at).ground),
            None => Err(no_session()),
        }
    }

    fn session(
        &mut self,
        shown: Shown<'_>,
        web: &Web,
        now_ms: u64,
    ) -> Result<&mut Session, ApiError> {
        self.sweep(web, now_ms);
        let cookies: Vec<Hash> = shown.cookies.iter().map(|text| Hash::of(text)).collect();
        let of_cookie =
            |session: &Session| cookies.iter().fold(false, |any, it| any | session.cookie.is(it));
        let Some(csrf) = shown.csrf.map(Hash::of) else {
            return Err(no_token("the request has no x-berth-csrf"));
        };
        let known = self.sessions.iter().fold(false, |any, it| any | of_cookie(it));
        let at = last(self.sessions.iter().map(|it| of_cookie(it) & it.csrf.is(&csrf)));
        match at.and_then(|at| self.sessions.get_mut(at)) {
            Some(session) => Ok(session),
            None if known => Err(no_token("x-berth-csrf is not the one of this session")),
            None => Err(no_session()),
        }
    }

    fn sweep(&mut self, web: &Web, now_ms: u64) {
        self.links.retain(|link| link.until_ms > now_ms);
        self.sessions.retain(|session| session.left_ms(web, now_ms).0 > 0);
    }
}

/// Where the last yes is; every one is looked at.
fn last(found: impl Iterator<Item = bool>) -> Option<usize> {
    found.enumerate().fold(None, |at, (index, yes)| if yes { Some(index) } else { at })
}

/// How one signs in, as every refusal says it.
pub(crate) const SIGN_IN: &str = "berth web";

fn refusal(reason: Reason, object: &str, text: impl Into<String>, way_out: &str) -> ApiError {
    Refusal::new(reason, object, text).with_resolve(vec![way_out.to_owned()]).into()
}

/// There is no such session, or not any more.
pub(super) fn no_session() -> ApiError {
    let text = "you are not signed in: the session ended, ran out, or berthd was restarted";
    refusal(Reason::Unauthenticated, "session", text, SIGN_IN)
}

/// What a link says that opens nothing.
pub(super) fn no_link() -> ApiError {
    let text = "the link opens nothing: it was used, ran out, or another berthd gave it";
    refusal(Reason::Unauthenticated, "link", text, SIGN_IN)
}

fn no_token(text: &str) -> ApiError {
    let way_out = "change things on the page itself, which sends it";
    refusal(Reason::PermissionDenied, "x-berth-csrf", text, way_out)
}

fn full(web: &Web) -> ApiError {
    let text = format!("there are {} sessions of browsers, and no more may be", web.sessions);
    let way_out = "sign out where you are done, wait for idle ones to end, or raise web.sessions";
    refusal(Reason::QuotaExceeded, "web.sessions", text, way_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ground(uid: u32) -> Ground {
        Ground {
            listener: "unix:/run/berth/berthd.sock".to_owned(),
            peer: UnixPeer { uid, pid: None, gids: Vec::new() },
            with_groups: false,
            role: Role::Operator,
            tenant: None,
        }
    }

    const WEB: Web = Web { link_ms: 1_000, idle_ms: 5_000, session_ms: 12_000, sessions: 6 };

    fn opened(table: &mut Table, uid: u32, now_ms: u64) -> Opened {
        let token = table.link(ground(uid), &WEB, now_ms).expect("room");
        table.open(&token, &WEB, now_ms).expect("a session")
    }

    fn find(table: &mut Table, of: &Opened, now_ms: u64, changes: bool) -> Result<Found, ApiError> {
        let cookies = [of.cookie.clone()];
        table.find(Shown { cookies: &cookies, csrf: Some(&of.csrf) }, &WEB, now_ms, changes)
    }

    #[test]
    fn a_link_opens_one_session_and_only_while_it_lasts() {
        let mut table = Table::default();
        let token = table.link(ground(1), &WEB, 0).expect("room");
        assert!(table.open(&token[1..], &WEB, 0).is_none(), "not the token");
        assert!(table.open(&token, &WEB, 999).is_some());
        assert!(table.open(&token, &WEB, 999).is_none(), "used");
        let token = table.link(ground(1), &WEB, 0).expect("room");
        assert!(table.open(&token, &WEB, 1_000).is_none(), "late");
    }

    #[test]
    fn a_session_ends_when_nothing_is_changed_and_at_its_end() {
        let mut table = Table::default();
        let session = opened(&mut table, 1, 0);
        // To look at it keeps it no longer.
        assert_eq!(find(&mut table, &session, 4_000, false).expect("there").idle_left_ms, 1_000);
        find(&mut table, &session, 4_999, true).expect("still there");
        find(&mut table, &session, 9_998, true).expect("used since");
        let left = find(&mut table, &session, 10_000, false).expect("there");
        assert_eq!((left.idle_left_ms, left.left_ms), (2_000, 2_000), "no longer than at most");
        let error = find(&mut table, &session, 12_000, true).expect_err("at its end");
        assert_eq!(error.reason(), Reason::Unauthenticated);
        let idle = opened(&mut table, 1, 20_000);
        find(&mut table, &idle, 25_000, true).expect_err("idle");
    }

    #[test]
    fn cookie_and_token_belong_together() {
        let mut table = Table::default();
        let (one, two) = (opened(&mut table, 1, 0), opened(&mut table, 2, 0));
        let mut ask = |cookies: &[&Opened], csrf: Option<&str>| {
            let cookies: Vec<String> = cookies.iter().map(|it| it.cookie.clone()).collect();
            let shown = Shown { cookies: &cookies, csrf };
            table.find(shown, &WEB, 0, true).map(|it| it.ground.peer.uid).map_err(|it| it.reason())
        };
        assert_eq!(ask(&[&one], Some(&one.csrf)), Ok(1));
        assert_eq!(ask(&[&one], Some(&two.csrf)), Err(Reason::PermissionDenied));
        assert_eq!(ask(&[&one], None), Err(Reason::PermissionDenied));
        assert_eq!(ask(&[], Some(&one.csrf)), Err(Reason::Unauthenticated));
        // A cookie that somebody else put there is in nobody's way.
        assert_eq!(ask(&[&two, &one], Some(&one.csrf)), Ok(1));
    }

    #[test]
    fn there_are_so_many_and_one_identity_ends_its_own_alone() {
        let mut table = Table::default();
        let other = opened(&mut table, 9, 0);
        let first = opened(&mut table, 1, 0);
        for _ in 0..OF_ONE {
            opened(&mut table, 1, 0);
        }
        find(&mut table, &first, 0, true).expect_err("the oldest of its own");
        find(&mut table, &other, 0, true).expect("of somebody else");
        table.link(ground(2), &WEB, 0).expect("the sixth");
        let error = table.link(ground(3), &WEB, 0).expect_err("one too many");
        assert_eq!(error.reason(), Reason::QuotaExceeded);
        assert_eq!(table.len(), WEB.sessions);
        table.link(ground(3), &WEB, WEB.link_ms).expect("a link ran out");
    }

    #[test]
    fn who_signs_out_is_out_and_nobody_else() {
        let mut table = Table::default();
        let (one, two) = (opened(&mut table, 1, 0), opened(&mut table, 1, 0));
        let cookies = [one.cookie.clone()];
        let shown = Shown { cookies: &cookies, csrf: Some(&one.csrf) };
        table.close(shown, &WEB, 0).expect("it was there");
        find(&mut table, &one, 0, true).expect_err("closed");
        find(&mut table, &two, 0, true).expect("the other");
    }
}
