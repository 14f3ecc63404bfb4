//! Real files, watched as a supervisor watches them.

use std::cell::Cell;
use std::os::unix::fs::symlink;
use std::rc::Rc;

use super::*;

/// A directory that is removed on drop.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bindonce-{name}-{}", std::process::id()));
        fs::create_dir(&path).expect("directory");
        Self(path.canonicalize().expect("its path"))
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).expect("write");
    }

    fn swap(&self, target: &str, link: &str) {
        symlink(target, self.0.join("..new")).expect("link");
        fs::rename(self.0.join("..new"), self.0.join(link)).expect("rename");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn ways(path: &Path) -> Vec<PathBuf> {
    let mut directories = BTreeSet::new();
    way(path, &mut directories);
    directories.into_iter().collect()
}

#[test]
fn every_step_that_could_change_is_watched() {
    let place = Place::new("way");
    fs::create_dir_all(place.0.join("..1")).expect("directory");
    place.write("..1/a.cfg", "1");
    symlink("..1", place.0.join("..data")).expect("link");
    symlink("..data/a.cfg", place.0.join("a.cfg")).expect("link");
    place.write("plain.cfg", "1");
    let top = place.0.clone();
    assert_eq!(ways(&top.join("plain.cfg")), std::slice::from_ref(&top));
    assert_eq!(ways(&top.join("a.cfg")), [top.clone(), top.join("..1")]);
    assert_eq!(ways(&top.join("none/there/x.cfg")), std::slice::from_ref(&top));
    symlink("loop", top.join("loop")).expect("link");
    assert_eq!(ways(&top.join("loop")), std::slice::from_ref(&top));
    let up = top.join("..1/../plain.cfg");
    assert_eq!(ways(&up), [top.join("..1/..")]);
}

/// Files that wait for a change, and try again at once what has failed.
async fn waiting(paths: Vec<PathBuf>, runs: bool) -> Files {
    match Watching::begin(paths, runs).await.expect("watch") {
        Watching::Waiting(files) => Files { again: Duration::from_millis(10), ..files },
        Watching::Looking(_) => panic!("the first look does not end"),
    }
}

/// Waits until a change is reported.
async fn reports(files: Files) {
    let (send, mut changed) = tokio::sync::mpsc::unbounded_channel();
    let follow = Watching::Waiting(files).follow(move |contents| _ = send.send(contents));
    tokio::select! {
        () = follow => panic!("no longer watched"),
        told = tokio::time::timeout(Duration::from_secs(10), changed.recv()) => {
            told.expect("a change").expect("its contents");
        }
    }
}

/// As at a limit on threads: the change was seen, and nothing else happens.
#[tokio::test]
async fn a_change_whose_look_could_not_begin_is_looked_at_later() {
    let place = Place::new("no-thread");
    place.write("a.cfg", "one");
    let mut files = waiting(vec![place.0.join("a.cfg")], false).await;
    place.write("a.cfg", "two");
    burst(files.changes.as_ref().expect("inotify")).await.expect("a change");
    files.failed = Some(io::Error::from_raw_os_error(nix::libc::EAGAIN));
    reports(files).await;
}

/// A directory on the way is a file, which inotify refuses.
#[tokio::test]
async fn what_cannot_be_watched_is_an_error_unless_a_generation_runs() {
    let place = Place::new("refused");
    place.write("conf.d", "");
    let paths = vec![place.0.join("conf.d/a.cfg")];
    assert!(Watching::begin(paths.clone(), false).await.is_err());
    let files = waiting(paths, true).await;
    assert!(files.failed.is_some() && files.told);
    fs::remove_file(place.0.join("conf.d")).expect("remove");
    fs::create_dir(place.0.join("conf.d")).expect("directory");
    place.write("conf.d/a.cfg", "one");
    reports(files).await;
}

/// The start has not waited for the first look.
#[tokio::test]
async fn contents_that_come_late_are_reported() {
    let place = Place::new("late");
    place.write("a.cfg", "one");
    let files = Files::new(vec![place.0.join("a.cfg")]);
    let late = files.look_aside();
    assert!(late.contents().is_none());
    let (send, mut changed) = tokio::sync::mpsc::unbounded_channel();
    tokio::select! {
        () = late.follow(move |contents| _ = send.send(contents)) => panic!("it ended"),
        told = changed.recv() => assert!(told.is_some()),
    }
}

/// Applies each deed, and checks how many reloads there were after it.
async fn reloads(paths: Vec<PathBuf>, deeds: Vec<(Box<dyn Fn()>, u32)>) {
    let files = Watching::begin(paths, false).await.expect("watch");
    let count = Rc::new(Cell::new(0));
    let counted = Rc::clone(&count);
    let local = tokio::task::LocalSet::new();
    local.spawn_local(files.follow(move |_| counted.set(counted.get() + 1)));
    let test = async {
        for (number, (deed, wanted)) in deeds.iter().enumerate() {
            deed();
            // Long enough for a burst, on a slow machine too.
            let deadline = Instant::now() + Duration::from_secs(10);
            while count.get() < *wanted && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::time::sleep(QUIET * 3).await;
            assert_eq!(count.get(), *wanted, "deed {number}");
        }
    };
    local.run_until(test).await;
}

fn deed(place: &Rc<Place>, deed: impl Fn(&Place) + 'static, wanted: u32) -> (Box<dyn Fn()>, u32) {
    let place = Rc::clone(place);
    (Box::new(move || deed(&place)), wanted)
}

#[tokio::test]
async fn only_what_reads_differently_is_a_change() {
    let place = Rc::new(Place::new("files"));
    place.write("a.cfg", "one");
    let deeds = vec![
        deed(&place, |p| p.write("other", "x"), 0),
        deed(&place, |p| p.write("a.cfg", "one"), 0),
        deed(&place, |p| (0..20).for_each(|n| p.write("a.cfg", &n.to_string())), 1),
        deed(
            &place,
            |p| {
                p.write("new", "two");
                fs::rename(p.0.join("new"), p.0.join("a.cfg")).expect("rename");
            },
            2,
        ),
        deed(&place, |p| fs::remove_file(p.0.join("a.cfg")).expect("remove"), 3),
        deed(&place, |p| p.write("a.cfg", "three"), 4),
    ];
    reloads(vec![place.0.join("a.cfg")], deeds).await;
}

#[tokio::test]
async fn a_volume_that_is_swapped_is_one_change() {
    let place = Rc::new(Place::new("volume"));
    for (version, text) in [("..1", "one"), ("..2", "two"), ("..3", "two")] {
        fs::create_dir(place.0.join(version)).expect("directory");
        place.write(&format!("{version}/a.cfg"), text);
    }
    place.swap("..1", "..data");
    symlink("..data/a.cfg", place.0.join("a.cfg")).expect("link");
    let deeds = vec![
        deed(&place, |p| p.swap("..2", "..data"), 1),
        // The same text again.
        deed(&place, |p| p.swap("..3", "..data"), 1),
        deed(&place, |p| p.swap("..1", "..data"), 2),
    ];
    reloads(vec![place.0.join("a.cfg"), place.0.clone()], deeds).await;
}
