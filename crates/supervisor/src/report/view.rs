//! The data for status and metrics, borrowed from the parts that own it.

use bindonce_core::generation::Timeline;
use bindonce_haproxy::config::Rendering;

use crate::context::Context;
use crate::generations::Generations;
use crate::report::Report;

pub(crate) struct View<'a> {
    pub(crate) cx: &'a Context,
    pub(crate) timeline: &'a Timeline,
    pub(crate) generations: &'a Generations,
    pub(crate) report: &'a Report,
    /// The configuration of the serving generation.
    pub(crate) rendering: Option<&'a Rendering>,
    pub(crate) upgrades: u64,
    pub(crate) broker_is_lost: bool,
}
