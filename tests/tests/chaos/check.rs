//! The ledger, once all is quiet: what was done, against what was published to containerd and what
//! CRI shows.

use std::collections::{BTreeMap, HashMap, HashSet};

use std::time::{Duration, Instant};

use coroner_tests::report::print;
use serde_json::Value;

use crate::wire::{Sighting, What};
use crate::world::{Life, World};
use crate::{EACH, explained};

/// What CRI shows where it lost a status.
const UNKNOWN_STATUS: i32 = 255;
/// From containerd's first answer on until CRI takes events in, at most.
const LISTENS: Duration = Duration::from_secs(3);

pub(crate) async fn all(world: &World) {
    let lives = world.lives.lock().unwrap().clone();
    let sightings = world.ledger.all();
    let deaths = world.deaths.lock().unwrap().clone();
    let mut of: HashMap<&str, Vec<(usize, &Sighting)>> = HashMap::new();
    for (at, sighting) in sightings.iter().enumerate() {
        of.entry(&sighting.container).or_default().push((at, sighting));
    }
    let mut repeats = 0;
    for life in &lives {
        let seen = of.get(life.id.as_str()).map(Vec::as_slice).unwrap_or_default();
        let first = |wanted: &dyn Fn(&What) -> bool| {
            seen.iter().find(|(_, it)| it.acked && wanted(&it.what)).map(|(at, _)| *at)
        };
        let oom = first(&|what| *what == What::Oom);
        assert_eq!(oom.is_some(), life.killed, "TaskOOM of {}: {seen:?}", shown(life));
        let exit = first(&|what| matches!(what, What::Exit { .. }));
        // Beside a shim that publishes exits the router does not.
        assert_eq!(exit.is_some(), life.container.is_none(), "TaskExit of {}: {seen:?}", shown(life));
        if let (Some(oom), Some(exit)) = (oom, exit) {
            assert!(oom < exit, "the kill of {} came after its exit: {seen:?}", shown(life));
        }
        for what in [What::Oom, What::Exit { status: life.status }] {
            let same: Vec<&Sighting> = seen.iter().map(|(_, it)| *it).filter(|it| it.what == what).collect();
            let (Some(earliest), Some(latest)) = (same.first(), same.last()) else { continue };
            // What is delivered while containerd restarts is repeated once CRI listens.
            let counts =
                |(died, back): &&(Instant, Instant)| *back + LISTENS >= earliest.at && *died <= latest.at;
            let died = deaths.iter().filter(counts).count();
            // A try that containerd did not answer is the same delivery.
            let again = same.iter().filter(|it| it.acked).count() - 1;
            repeats += again;
            assert!(again <= died, "{}: {again} repeats, {died} deaths: {same:?}", shown(life));
        }
        let right = |what: &What| match what {
            What::Oom => true,
            What::Exit { status } => *status == life.status,
        };
        let wrong = seen.iter().any(|(_, it)| !right(&it.what));
        assert!(!wrong, "{}: {seen:?}", shown(life));
    }
    let known: HashSet<&str> = lives.iter().map(|life| life.id.as_str()).collect();
    // A container interrupted by a stop of containerd is unknown; one that was never started was
    // invented.
    let unexplained: Vec<&&str> = of.keys().filter(|id| !known.contains(**id) && id.len() != 64).collect();
    assert!(unexplained.is_empty(), "{unexplained:?}");
    reasons(world, &lives).await;
    audited(world).await;
    explained::all(world, &lives).await;
    let killed = lives.iter().filter(|life| life.killed).count();
    let bare = lives.iter().filter(|life| life.container.is_none()).count();
    print(format_args!(
        "{} containers ({bare} bare), {killed} with an OOM kill; {} deliveries, {repeats} repeats, {} deaths",
        lives.len(),
        sightings.iter().filter(|it| it.acked).count(),
        deaths.len(),
    ));
    assert!(bare >= 2 * EACH && lives.len() >= bare + EACH, "containers did live and die");
}

fn shown(life: &Life) -> String {
    format!("{} ({})", life.id, life.action)
}

/// No reason is wrong. Statuses are the shims' in this mode, and containerd, killed while a shim
/// reports one, may lose it for good, or the whole container: it logs that.
async fn reasons(world: &World, lives: &[Life]) {
    let mut cri = world.cri.clone();
    let mut lost = 0;
    for life in lives {
        let Some(container) = &life.container else { continue };
        if cri.has_lost(container).await {
            lost += 1;
            continue;
        }
        let reading = cri.reading(container).await.unwrap().expect("it has ended");
        let subject = format!("{} ({}): {reading}", container.name, life.action);
        let unknown = reading.code == UNKNOWN_STATUS;
        lost += usize::from(unknown);
        assert!(unknown || reading.code == i32::try_from(life.status).unwrap(), "{subject}");
        match (life.killed, life.status) {
            (true, _) => assert!(reading.is_oom() || unknown && reading.reason == "Unknown", "{subject}"),
            (false, _) if unknown => assert_eq!(reading.reason, "Unknown", "{subject}"),
            (false, 0) => assert_eq!(reading.reason, "Completed", "{subject}"),
            (false, _) => assert_eq!(reading.reason, "Error", "{subject}"),
        }
    }
    print(format_args!("{lost} statuses were lost by containerd itself"));
    assert!(lost <= EACH, "of those that ended as containerd was killed, at most as many as there were");
}

/// What was ruled more than once was ruled alike, and the journal had state to recover.
async fn audited(world: &World) {
    let router = world.router.lock().await;
    let audit = router.audit().unwrap();
    let mut ruled: BTreeMap<&str, &Value> = BTreeMap::new();
    let mut again = 0;
    for record in audit.iter().filter(|record| record["record"] == "ruled") {
        let id = record["signal"]["id"].as_str().unwrap();
        if let Some(before) = ruled.insert(id, record) {
            again += 1;
            assert_eq!(before["actions"], record["actions"], "{id} was ruled in two ways");
        }
    }
    let recovered = audit.iter().filter(|record| record["record"] == "recovered");
    let went_on = recovered.filter(|it| it["signals"] != 0 || it["events"] != 0).count();
    print(format_args!(
        "{} signals ruled, {again} of them again; {went_on} times the journal had work",
        ruled.len()
    ));
    assert_eq!(router.logged("panicked").unwrap(), 0);
}
