//! The broker's status page: what `bindonce status` shows about the broker, for a browser.

use std::cell::RefCell;

use bindonce_core::time::Timestamp;
use bindonce_daemon::status_page::{Generation, LISTENERS, Service, StatusPage};
use bindonce_sys::clock;
use bindonce_wire::result::{GenerationInfo, ServiceInfo};

use crate::broker::{Broker, VERSION};
use crate::problems;
use crate::requests::list;

/// The page as HTML.
pub(crate) async fn html(broker: &RefCell<Broker>) -> String {
    let services = list::services(broker, |_, _| true).await.into_iter().map(service).collect();
    let (listeners, more_listeners) = list::first(broker, LISTENERS).await;
    let problems = problems::all(broker).await;
    let page = {
        let broker = broker.borrow();
        let about = format!(
            "broker {VERSION}, pid {}, on {}, {} listeners",
            std::process::id(),
            broker.endpoint.socket.display(),
            broker.listeners.registry.len()
        );
        StatusPage {
            subject: "broker".to_owned(),
            about,
            now: clock::now(),
            services,
            problems,
            listeners: Ok(listeners),
            more_listeners,
            events: broker.reporter.journal.after(0),
            examines: false,
        }
    };
    page.html()
}

fn service(info: ServiceInfo) -> Service {
    let generations = info.generations.iter().map(generation).collect();
    Service { name: info.name, generations }
}

fn generation(info: &GenerationInfo) -> Generation {
    Generation {
        number: info.generation,
        state: info.state.to_string(),
        pid: i32::try_from(info.pid).ok(),
        since: Timestamp::parse(&info.since),
        ..Generation::default()
    }
}
