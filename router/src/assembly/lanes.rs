//! Starts the lanes and their sinks.

use tokio::sync::mpsc;

use super::{Assembly, STAGE};
use crate::config::{Config, SinkKind};
use crate::delivery::LifecycleLane;
use coroner_journal::PublishedOom;
use coroner_sinks::{Fanout, Lanes, Lifecycle, LifecycleAccounting, Place, Records};

/// The namespace that CRI-O uses for its shims.
const CRIO_NAMESPACE: &str = "default";

impl Assembly {
    /// Starts all lanes. `published` are events that an earlier run published.
    pub(super) fn lanes(
        &mut self,
        config: &Config,
        mut published: Vec<PublishedOom>,
    ) -> (Option<LifecycleLane>, Fanout) {
        let Lanes { lanes, records, fanout } = Lanes::new(
            &config.sinks,
            &config.routes,
            &config.node,
            |sink| self.counts.sink(sink),
            &self.counts.reports_unrouted,
            &self.tasks.over(),
        );
        for lane in lanes {
            self.add(format!("sink {}", lane.name()), lane.run());
        }
        self.records = records.clone();
        let mut lifecycle = None;
        for sink in &config.sinks {
            let (place, namespace) = match (&sink.kind, &config.containerd) {
                (SinkKind::Containerd, Some(at)) => {
                    let (address, grpc_address) = (at.ttrpc_address.clone(), at.address.clone());
                    let published = std::mem::take(&mut published);
                    (Place::Containerd { address, grpc_address, published }, at.namespace.clone())
                }
                (SinkKind::OomFile, _) => (Place::OomFile, CRIO_NAMESPACE.to_owned()),
                _ => continue,
            };
            lifecycle = Some(self.lifecycle_lane(&sink.name, place, namespace, &records));
        }
        (lifecycle, fanout)
    }

    /// The lifecycle lane has a queue of its own.
    fn lifecycle_lane(
        &mut self,
        sink: &str,
        place: Place,
        namespace: String,
        records: &Records,
    ) -> LifecycleLane {
        let is_oom_file = matches!(place, Place::OomFile);
        let (lane, actions) = mpsc::channel(STAGE);
        let accounting = LifecycleAccounting {
            sink: sink.to_owned(),
            records: records.clone(),
            counts: self.counts.sink(sink),
        };
        let (holds, give_up) = (self.holds.clone(), self.tasks.over());
        let publisher = Lifecycle { place, accounting, holds, give_up };
        self.tasks.add_counting(format!("sink {sink}"), publisher.run(actions));
        LifecycleLane { sink: sink.to_owned(), namespace, is_oom_file, lane }
    }
}
