//! Finds resources that are nearly used up.

use super::condition::{Condition, Limit, Resource};
use super::finding::Finding;
use super::kind::Severity;
use crate::facts::{Gauge, Look};

/// From the first percentage on a limit is a warning; from the second on an error.
const NEAR: f64 = 85.0;
const OVER: f64 = 98.0;

pub(super) fn find(look: &Look, found: &mut Vec<Finding>) {
    let mut check = |gauge: Gauge, network: Option<String>, resource: Resource| {
        let percent = gauge.percent();
        if percent < NEAR {
            return;
        }
        let severity = if percent >= OVER { Severity::Error } else { Severity::Warning };
        let pids = match resource {
            Resource::Descriptors(pid) => vec![pid],
            _ => Vec::new(),
        };
        let limit = Limit { used: gauge.used, limit: gauge.limit, percent, resource };
        let finding = Finding::at(network, severity, Condition::Limit(limit));
        found.push(Finding { pids, ..finding });
    };
    for process in look.processes.values() {
        let usage = &process.usage;
        let gauge = Gauge { used: usage.descriptors, limit: usage.descriptor_limit };
        let network = look.network_name(process.network);
        check(gauge, network, Resource::Descriptors(process.pid));
    }
    if let Some(files) = look.files {
        check(files, None, Resource::Files);
    }
    for network in &look.networks {
        if let Some(conntrack) = network.conntrack {
            check(conntrack, network.name.clone(), Resource::Conntrack);
        }
        if let Some(ports) = &network.ports {
            let resource = Resource::Ports(ports.destination.clone());
            check(ports.gauge, network.name.clone(), resource);
        }
    }
}
