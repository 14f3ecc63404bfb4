//! Resources that are nearly used up.

use super::facts::{Gauge, Look};
use super::finding::{Finding, Kind, Severity};
use super::text;

/// From this part on, in percent, a limit is worth a word; from the second on it hurts now.
const NEAR: f64 = 85.0;
const OVER: f64 = 98.0;

pub(super) fn limits(look: &Look, found: &mut Vec<Finding>) {
    for process in look.processes.values() {
        let gauge = process.descriptors;
        found.extend(limit(
            gauge,
            vec![process.pid],
            look.network_of(process),
            &format!("descriptors of {}", text::process(look, process)),
            "without a free descriptor it accepts no connection and opens none to a server",
            format!(
                "prlimit --pid {} --nofile={}   # and LimitNOFILE= or ulimit-n, so that it lasts",
                process.pid,
                gauge.limit * 2
            ),
        ));
    }
    if let Some(gauge) = look.files {
        found.extend(limit(
            gauge,
            Vec::new(),
            None,
            "open files of the system (fs.file-max)",
            "nobody can open a socket or a file any more",
            format!("sysctl -w fs.file-max={}", gauge.limit * 2),
        ));
    }
    for network in &look.networks {
        if let Some(gauge) = network.conntrack {
            found.extend(limit(
                gauge,
                Vec::new(),
                network.name.clone(),
                "entries of connection tracking (nf_conntrack_max)",
                "new connections are dropped before any socket sees them",
                format!("sysctl -w net.netfilter.nf_conntrack_max={}", gauge.limit * 2),
            ));
        }
        if let Some((destination, gauge)) = &network.ephemeral {
            found.extend(limit(
                *gauge,
                Vec::new(),
                network.name.clone(),
                &format!("local ports for connections to {destination}"),
                "without a free one no connection to this destination can be made (EADDRNOTAVAIL)",
                "sysctl -w net.ipv4.ip_local_port_range='1024 65535'   # or more source or destination addresses, or reuse of connections".to_owned(),
            ));
        }
    }
}

fn limit(
    gauge: Gauge,
    culprits: Vec<i32>,
    network: Option<String>,
    what: &str,
    cause: &str,
    remedy: String,
) -> Option<Finding> {
    let percent = gauge.percent();
    (gauge.limit > 0 && percent >= NEAR).then(|| Finding {
        kind: Kind::Limit,
        severity: if percent >= OVER { Severity::Error } else { Severity::Warning },
        network,
        address: None,
        also: Vec::new(),
        service: None,
        culprits,
        summary: format!("{} of {}, {percent:.0} %, {what}", gauge.used, gauge.limit),
        evidence: vec![
            ("used", gauge.used.into()),
            ("limit", gauge.limit.into()),
            ("percent", percent.into()),
        ],
        cause: cause.to_owned(),
        remedy: vec![remedy],
    })
}
