//! End-to-end tests: the real `bindonce`, a real haproxy, and the kernel's own
//! view of who listens. One module for each theme; `harness` gives every test a
//! directory and a network namespace of its own and checks at the end that no
//! process is left in it.

#![forbid(unsafe_code)]
// The lint's exception for tests covers only functions marked #[test], not their harness.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod harness;

mod addresses;
mod adopt;
mod advice;
mod astray;
mod beside;
mod boundary;
mod callers;
mod carried_over;
mod check;
mod circles;
mod compared;
mod configurations;
mod containers;
mod corpus;
mod costs;
mod counters;
mod cut;
mod deadlines;
mod debug_options;
mod demo;
mod doctor;
mod documentation;
mod draining;
mod dropped;
mod events;
mod exec;
mod faults;
mod floors;
mod generations;
mod handover;
mod hanging;
mod hidden;
mod inherited;
mod inspect;
mod intercept;
mod killed;
mod kinds;
mod known_programs;
mod leaks;
mod left;
mod library_package;
mod line_options;
mod lingering;
mod links;
mod many;
mod master_cli;
mod masters;
mod metrics;
mod migrating;
mod mistakes;
mod namespaces;
mod neighbours;
mod networks;
mod notified;
mod outcome;
mod outlived;
mod overlaps;
mod own_addresses;
mod paced;
mod package;
mod pid_files;
mod privileges;
mod problems;
mod programs;
mod prometheus;
mod proof;
mod protocol;
mod quic;
mod recovery;
mod refused;
mod refusing;
mod render;
mod rights;
mod security;
mod serve;
mod stand_in;
mod stopped;
mod strangers;
mod succession;
mod supervise;
mod survived;
mod systemd;
mod tables;
mod takeovers;
mod top;
mod transparent;
mod trust;
mod unreceived;
mod untrusted;
mod upgrade;
mod watch;
