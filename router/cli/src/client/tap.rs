//! `coroner tap`: shows what a running router rules and delivers, until it is interrupted or its
//! output is closed.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use coroner::node::admin::Missed;
use coroner_core::audit::Ruled;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::http::{Client, Failure, Lines, encode};
use crate::args::{FAILED, Query, TapFilter};
use crate::render::Colour::{Bold, Dim, Green, Red, Yellow};
use crate::render::record::{RecordLine, read};
use crate::render::{self, Screen, Text, note, paint, written};
use crate::serve::stop_signal;

/// A stream without records sends an empty line so often: so soon a closed output and a router that
/// hangs are noticed.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Rulings with deliveries that are shown by name; those of older ones by their container's id.
/// Without a bound a tap that runs for a year would remember every ruling of it.
const REMEMBERED: usize = 4096;

pub(crate) fn tap(filter: &TapFilter, query: &Query) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return render::fail(FAILED, format!("no runtime: {error}")),
    };
    let ended = runtime.block_on(async {
        let stop = stop_signal().map_err(|error| (FAILED, error))?;
        let mut client = Client::connect(&query.socket).await?;
        tokio::select! {
            ended = follow(&mut client, filter, query.json) => ended,
            () = stop => Ok(Ok(())),
        }
    });
    match ended {
        Ok(result) => written(result, ExitCode::SUCCESS),
        Err((code, message)) => render::fail(code, message),
    }
}

/// The route with its query.
fn path(filter: &TapFilter) -> String {
    let mut path = format!("/tap?heartbeat-ms={}", HEARTBEAT.as_millis());
    let given = [
        ("container", &filter.container),
        ("pod", &filter.pod),
        ("namespace", &filter.namespace),
        ("kind", &filter.kind),
    ];
    for (key, value) in given.into_iter().filter_map(|(key, value)| Some((key, value.as_deref()?))) {
        path += &format!("&{key}={}", encode(value));
    }
    path
}

/// Ends when the output is closed or cannot be written.
async fn follow(client: &mut Client, filter: &TapFilter, json: bool) -> Result<io::Result<()>, Failure> {
    let mut view = TapView::new(json, Screen::new());
    let mut lines = Lines::new(client.open(&path(filter)).await?);
    // Records are kept from now on: what happens after this line is shown.
    note("reading along; interrupt to end");
    loop {
        let Some(chunk) = lines.next(client).await? else {
            return Err((FAILED, "the router closed the stream: it is stopping".to_owned()));
        };
        for record in chunk.iter().filter(|line| !line.is_empty()) {
            view.show(record);
        }
        if let Err(error) = view.screen.print() {
            return Ok(Err(error));
        }
        if !is_read() {
            return Ok(Ok(()));
        }
    }
}

/// A pipe without a reader shows that without being written to (poll(2), POLLERR).
fn is_read() -> bool {
    let out = io::stdout();
    let mut polled = [PollFd::new(&out, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_err() || !polled[0].revents().contains(PollFlags::ERR)
}

pub(super) struct TapView {
    pub(super) screen: Screen,
    json: bool,
    /// The containers of the latest rulings, by signal id.
    rulings: HashMap<String, String>,
    order: VecDeque<String>,
}

impl TapView {
    pub(super) fn new(json: bool, screen: Screen) -> Self {
        Self { screen, json, rulings: HashMap::new(), order: VecDeque::new() }
    }

    pub(super) fn show(&mut self, record: &str) {
        if let Ok(Missed { missed }) = serde_json::from_str(record) {
            note(format!("too slow: {missed} records of all containers were not kept for this tap"));
            return;
        }
        if self.json {
            self.screen.verbatim(record);
            return;
        }
        let line = match read(record) {
            Ok(RecordLine::Ruled(ruled)) => self.ruled(&ruled),
            Ok(RecordLine::Delivered(delivered)) => {
                let id = &delivered.id;
                let container = self.rulings.get(id).cloned();
                let container =
                    container.unwrap_or_else(|| render::short_id(render::container_of(id).unwrap_or("?")));
                let colour = if render::is_delivered(&delivered) { Green } else { Red };
                let outcome = paint(colour, render::outcome(&delivered));
                Text::from(format!("{:13}  {container}  ", "")).then(outcome)
            }
            Ok(RecordLine::Chain(chain)) => {
                let (generation, count) = (chain.generation, chain.policies.len());
                let refused = chain.refused.len();
                let text =
                    format!("policies: generation {generation}, {count} in the chain, {refused} refused");
                timed(chain.at_ms, text)
            }
            Ok(RecordLine::Recovered(recovery)) => timed(recovery.at_ms, render::recovered(&recovery)),
            Ok(RecordLine::Resumed(_) | RecordLine::Journaled(_) | RecordLine::Unknown) => return,
            Err(message) => return note(message),
        };
        self.screen.line(line);
    }

    fn ruled(&mut self, ruled: &Ruled) -> Text {
        let signal = &ruled.signal;
        let container = render::container_name(&signal.target);
        self.remember(&signal.id, &container);
        let mark = render::marks(signal).map(|mark| format!(" [{mark}]")).unwrap_or_default();
        let mut line = paint(Dim, render::clock(signal.at.received_ms))
            .then(format!("  {container}  "))
            .then(paint(Bold, format!("{}{mark}", render::happened(signal))))
            .then(format!(" | {}", render::decided(ruled)));
        for (fault, _) in render::opinions(ruled).into_iter().filter(|(_, failed)| *failed) {
            line = line.then(" | ").then(paint(Red, fault));
        }
        let planned = render::planned(ruled);
        if planned.is_empty() { line } else { line.then(format!(" | {}", planned.join(", "))) }
    }

    fn remember(&mut self, id: &str, container: &str) {
        if self.rulings.insert(id.to_owned(), container.to_owned()).is_none() {
            self.order.push_back(id.to_owned());
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.rulings.remove(&oldest);
        }
    }
}

fn timed(at_ms: u64, text: String) -> Text {
    Text::from(render::clock(at_ms)).then("  ").then(paint(Yellow, text))
}
