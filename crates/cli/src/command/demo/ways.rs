//! The two ways: haproxy reloaded by `-sf`, and haproxy under a supervisor.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use bindonce::Client;

use super::schedule::Way;
use super::stage::{READY, Stage};

/// `haproxy -f FILE -sf PID`, with the pid that a pid file would have.
#[derive(Debug, Default)]
pub(super) struct Plain {
    /// The process that was started last.
    pid: Option<u32>,
}

impl Plain {
    fn begin(stage: &mut Stage, older: Option<u32>) -> anyhow::Result<u32> {
        let mut words: Vec<OsString> =
            vec!["-db".into(), "-f".into(), stage.configuration().into()];
        if let Some(older) = older {
            words.extend(["-sf".into(), older.to_string().into()]);
        }
        let program = stage.haproxy.clone();
        stage.start("haproxy", program.as_os_str(), &words)
    }
}

impl Way for Plain {
    fn start(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        self.reload(stage)
    }

    fn reload(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        self.pid = Some(Self::begin(stage, self.pid)?);
        Ok(())
    }

    /// Both reloads read the same pid before either writes its own. So the process of the first one
    /// is in no pid file, and nothing ever tells it to stop.
    fn reload_twice(&mut self, stage: &mut Stage, first: &str, second: &str) -> anyhow::Result<()> {
        let read_by_both = self.pid;
        stage.configure(first)?;
        let forgotten = Self::begin(stage, read_by_both)?;
        stage.bound_by(forgotten)?;
        stage.configure(second)?;
        self.pid = Some(Self::begin(stage, read_by_both)?);
        Ok(())
    }
}

/// `bindonce serve`, `bindonce run -- haproxy -f FILE`, and `bindonce reload`.
#[derive(Debug)]
pub(super) struct Supervised;

impl Supervised {
    fn words(stage: &Stage, verb: &str) -> Vec<OsString> {
        vec![verb.into(), "--socket".into(), stage.socket().into()]
    }

    fn begin_reload(stage: &mut Stage) -> anyhow::Result<u32> {
        let words = Self::words(stage, "reload");
        stage.start("reload", own_binary(), &words)
    }
}

impl Way for Supervised {
    fn start(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        let serve = Self::words(stage, "serve");
        stage.start("broker", own_binary(), &serve)?;
        Client::reconnect(&stage.socket(), &[], None, READY)?;
        let mut run = Self::words(stage, "run");
        run.extend(["--".into(), stage.haproxy.clone().into(), "-f".into()]);
        run.push(stage.configuration().into());
        stage.start("supervisor", own_binary(), &run).map(drop)
    }

    fn reload(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        let reload = Self::begin_reload(stage)?;
        stage.wait_success(reload, READY)
    }

    fn reload_twice(&mut self, stage: &mut Stage, first: &str, second: &str) -> anyhow::Result<()> {
        stage.configure(first)?;
        let one = Self::begin_reload(stage)?;
        stage.configure(second)?;
        let other = Self::begin_reload(stage)?;
        stage.wait_success(one, READY)?;
        stage.wait_success(other, READY)
    }
}

/// The running binary, even if its file was replaced meanwhile.
fn own_binary() -> &'static OsStr {
    Path::new("/proc/self/exe").as_os_str()
}
