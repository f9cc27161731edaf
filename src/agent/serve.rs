//! The agent's life: greet, serve one request after the other, and when the controller is gone put back what was begun.
//!
//! Signals that ask an agent to end count as a lost controller. Stdout belongs to the wire; nothing else is printed there.

use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};

use super::engage::{Engaged, engage};
use super::lane;
use super::session::{Inbox, Session, blocking, greet};
use super::{destination::Destination, source::Source};
use crate::authority::Authority;
use crate::failpoint;
use crate::problem::{Explain, Outcome};
use crate::wire::message::{DestinationRequest, Named, Open, Reply, Role, SourceRequest, Up};
use crate::wire::stripe::{self, Part};

/// One role's work.
pub(super) trait Serve: Sized + Send {
    /// The role's requests.
    type Request: Named + DeserializeOwned + Send + 'static;
    /// Takes the first request.
    async fn open(open: Engaged, session: Session) -> Outcome<(Self, Reply)>;
    /// The first request, if this is it.
    fn as_open(request: Self::Request) -> Result<Box<Open>, Self::Request>;
    /// Does one request.
    async fn serve(&mut self, request: Self::Request, inbox: &mut Inbox<Self::Request>) -> Outcome<Reply>;
    /// The controller is gone: put back what was begun.
    async fn abandoned(self);
}

/// Serves a controller on stdin and stdout until it leaves.
pub fn run(role: Role, authority: &Authority) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .explain(|| "cannot start the agent's runtime")?;
    runtime.block_on(async {
        match role {
            Role::Source => serve::<Source>(role, authority).await,
            Role::Destination => serve::<Destination>(role, authority).await,
        }
    })?;
    // stdin may still be blocked in a read that nobody waits for
    runtime.shutdown_background();
    Ok(())
}

async fn serve<R: Serve>(role: Role, authority: &Authority) -> Outcome<()> {
    failpoint::init(vec![role.to_string()]);
    let (mut reader, mut writer) = (tokio::io::stdin(), tokio::io::stdout());
    let hello = Up::Hello { role, build: env!("CARGO_PKG_VERSION").into() };
    let lanes = greet(&mut reader, &mut writer, &hello)
        .await
        .explain(|| "no controller on stdin; agents are started by the controller")?;
    let (session, mut inbox) = if lanes.more == 0 {
        Session::start::<R::Request>(reader, writer)
    } else {
        let mut parts = lane::gather(&lanes).await?;
        parts.push(Part { reader: Box::new(reader), writer: Box::new(writer) });
        let (reader, writer) = stripe::join(parts);
        Session::start::<R::Request>(reader, writer)
    };
    leave_on_signals(session.clone())?;
    let mut state: Option<R> = None;
    while let Some((id, request)) = next(&session, &mut inbox).await {
        let name = request.name();
        let result = async {
            failpoint::reach(&format!("{name}:before")).await?;
            let reply = answer(&mut state, request, &session, &mut inbox, (role, authority)).await?;
            failpoint::reach(&format!("{name}:after")).await?;
            Ok(reply)
        }
        .await;
        if session.send(&Up::Reply { id, result }).await.is_err() {
            break;
        }
    }
    if let Some(state) = state {
        state.abandoned().await;
    }
    Ok(())
}

async fn next<Q>(session: &Session, inbox: &mut Inbox<Q>) -> Option<(u32, Q)> {
    tokio::select! {
        biased;
        () = session.gone() => None,
        call = inbox.calls.recv() => call,
    }
}

async fn answer<R: Serve>(
    state: &mut Option<R>,
    request: R::Request,
    session: &Session,
    inbox: &mut Inbox<R::Request>,
    (role, authority): (Role, &Authority),
) -> Outcome<Reply> {
    match (state.as_mut(), R::as_open(request)) {
        (None, Ok(open)) => {
            failpoint::init(vec![role.to_string(), format!("{role}@{}", open.host)]);
            let authority = authority.clone();
            let engaged = blocking(move || engage(*open, role, &authority)).await?;
            let (opened, reply) = R::open(engaged, session.clone()).await?;
            *state = Some(opened);
            Ok(reply)
        }
        (Some(state), Err(request)) => state.serve(request, inbox).await,
        _ => Err(crate::problem::Problem::failed("requests out of order: an agent is opened once, first")),
    }
}

fn leave_on_signals(session: Session) -> Outcome<()> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()] {
        let mut stream = signal(kind).explain(|| "cannot watch for signals")?;
        let session = session.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                session.leave();
            }
        });
    }
    Ok(())
}

/// All fail points of agents, as `WHERE:POINT`.
pub fn points() -> Vec<String> {
    let both = |role: Role, names: &[&str]| -> Vec<String> {
        names.iter().flat_map(|name| [format!("{role}:{name}:before"), format!("{role}:{name}:after")]).collect()
    };
    let mut all = both(Role::Source, SourceRequest::ALL);
    all.extend(both(Role::Destination, DestinationRequest::ALL));
    all.extend(super::source::INNER_POINTS.iter().map(|p| format!("{}:{p}", Role::Source)));
    all.extend(super::freeze::POINTS.iter().map(|p| format!("{}:{p}", Role::Source)));
    all.extend(super::destination::INNER_POINTS.iter().map(|p| format!("{}:{p}", Role::Destination)));
    all.push(format!("{}:{}", Role::Destination, super::destination::MOVING_POINT));
    all
}
