//! The registry of a process: what it writes down there, whom it finds, and how both are shown.

use crate::config::Config;
use api::admin::{self, Module, ModuleState, Status};
use fabric::{Network, discovery::Registration, route::Dials};
use platform::{
    bus::Nodes,
    supervision::{OnEnd, Supervisor},
};
use std::{pin::pin, sync::Arc, time::Duration};

const STOP_LIMIT: Duration = Duration::from_secs(5);
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What this process serves, and where, if it does.
pub struct Own {
    pub address: Option<String>,
    pub modules: Vec<String>,
}

/// Finds peers for `dials` as long as the process runs, and writes this process down. What is returned is to be taken out before it drains.
pub async fn attend(
    nodes: Nodes,
    network: &Network,
    own: Own,
    dials: Option<Arc<Dials>>,
    config: &Config,
    status: &Status,
    tasks: &mut Supervisor,
) -> anyhow::Result<Option<Arc<Registration>>> {
    let lease = config.discovery.lease();
    let Own { address, modules } = own;
    let registration = match address.as_ref().filter(|_| !modules.is_empty()) {
        Some(address) => Some(Arc::new(Registration::new(network, nodes.clone(), address, modules, lease)?)),
        None => None,
    };
    if let Some(registration) = registration.clone() {
        tasks.spawn("registration", OnEnd::ExitProcess, STOP_LIMIT, |stop| async move {
            registration.keep(stop).await;
            Ok(())
        });
    }
    let (status, kept, url) = (status.clone(), registration.clone(), config.bus.url.as_ref().map(ToString::to_string));
    let tell = move |dials: Option<&Dials>| {
        let own = kept.as_ref().map(|kept| match kept.trouble() {
            Some(why) => format!("not found by others at {}: {why}", kept.address()),
            None => format!("found by others at {}", kept.address()),
        });
        let detail = dials.map(Dials::registry).into_iter().chain(own).collect::<Vec<_>>().join("; ");
        // Never a reason to be unready: who is known stays known.
        let away = dials.is_some_and(Dials::is_registry_away) || kept.as_ref().is_some_and(|kept| kept.trouble().is_some());
        let state = if away { ModuleState::Degraded } else { ModuleState::Ready };
        let mode = admin::Mode::Remote;
        status.set(Module { name: "registry".into(), mode, endpoint: url.clone(), state, detail });
    };
    if let Some(dials) = &dials {
        dials.look_up(&nodes, address.as_deref(), lease).await; // whoever is there already is asked from the first call on
    }
    tell(dials.as_deref());
    tasks.spawn("registry", OnEnd::ExitProcess, STOP_LIMIT, |stop| async move {
        let follow = async {
            match &dials {
                Some(dials) => dials.follow(&nodes, address.as_deref(), lease, stop.clone()).await,
                None => stop.cancelled().await,
            }
        };
        let mut follow = pin!(follow);
        let mut look = tokio::time::interval(TELL_EVERY);
        loop {
            tokio::select! { () = &mut follow => return Ok(()), _ = look.tick() => tell(dials.as_deref()) }
        }
    });
    Ok(registration)
}
