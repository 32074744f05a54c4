//! `coroner tap`: reads along what a running router rules and delivers, until interrupted or nobody reads it here.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use coroner_proto::control::{TapRequest, TapResponse};
use coroner_proto::control_ttrpc::ControlClient;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use ttrpc::context::with_duration;

use super::{connect, refused};
use crate::cli::{Ask, FAILED, Which};
use crate::serve::stop_signal;
use crate::telling::{self, BOLD, DIM, GREEN, Paper, RED, YELLOW};

/// One call waits so long for records: so soon it shows that nobody reads the output any more.
const WAIT_MS: u32 = 1_000;
/// A router that has not answered by then hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Rulings whose deliveries are told by name; those of older ones by their container's id. Without a bound a tap that runs for a year
/// would remember every ruling of it.
const REMEMBERED: usize = 4096;

pub(crate) fn tap(which: &Which, ask: &Ask) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("coroner: no runtime: {error}");
            return FAILED.into();
        }
    };
    let ended = runtime.block_on(async {
        let stop = stop_signal().map_err(|error| (FAILED, error))?;
        let client = connect(ask).await?;
        tokio::select! {
            ended = follow(&client, which, ask.json) => ended,
            () = stop => Ok(()),
        }
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            eprintln!("coroner: {message}");
            code.into()
        }
    }
}

/// Ends when nobody reads the output any more.
async fn follow(client: &ControlClient, which: &Which, json: bool) -> Result<(), (u8, String)> {
    let given = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut request = TapRequest {
        container: given(&which.container),
        pod: given(&which.pod),
        namespace: given(&which.namespace),
        kind: given(&which.kind),
        ..TapRequest::default()
    };
    let mut view = View { paper: Paper::new(), json, rulings: HashMap::new(), order: VecDeque::new() };
    let mut begun = false;
    loop {
        let answer = client.tap(with_duration(PATIENCE), &request).await.map_err(|error| refused(&error))?;
        if !begun {
            // Said once records are kept: who starts something now sees it.
            eprintln!("coroner: reading along; interrupt to end");
            begun = true;
        }
        (request.after, request.wait_ms) = (Some(answer.next), WAIT_MS);
        match view.show(&answer) {
            Ok(()) if read_by_somebody() => {}
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err((FAILED, format!("cannot write: {error}"))),
        }
    }
}

/// A pipe whose other end is closed says so without being written to (poll(2), POLLERR).
fn read_by_somebody() -> bool {
    let out = io::stdout();
    let mut looked = [PollFd::new(&out, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut looked, Some(&now)).is_err() || !looked[0].revents().contains(PollFlags::ERR)
}

struct View {
    paper: Paper,
    json: bool,
    /// Who the latest rulings were about, by signal id.
    rulings: HashMap<String, String>,
    order: VecDeque<String>,
}

impl View {
    fn show(&mut self, answer: &TapResponse) -> io::Result<()> {
        if answer.missed > 0 {
            let missed = answer.missed;
            eprintln!(
                "coroner: too slow: {missed} records were not kept for this tap, whomever they were about"
            );
        }
        for record in &answer.records {
            if self.json {
                self.paper.say(record)?;
                continue;
            }
            let Ok(value) = serde_json::from_str::<Value>(record) else { continue };
            if let Some(line) = self.line(&value) {
                self.paper.say(&line)?;
            }
        }
        Ok(())
    }

    fn line(&mut self, record: &Value) -> Option<String> {
        match record["record"].as_str()? {
            "ruled" => Some(self.ruled(record)),
            "delivered" => {
                let id = record["id"].as_str().unwrap_or_default();
                let who = self.rulings.get(id).cloned();
                let who = who.unwrap_or_else(|| telling::short(telling::container_of(id).unwrap_or("?")));
                let (outcome, taken) = telling::outcome(record);
                let outcome = self.paper.paint(if taken { GREEN } else { RED }, &outcome);
                Some(format!("{:13}  {who}  {outcome}", ""))
            }
            "chain" => {
                let at = telling::clock(record["at-ms"].as_u64().unwrap_or(0));
                let (generation, count) =
                    (&record["generation"], record["policies"].as_array().map_or(0, Vec::len));
                let refused = record["refused"].as_array().map_or(0, Vec::len);
                let chain = format!("policies: generation {generation} of {count} rules, {refused} refused");
                Some(format!("{at}  {}", self.paper.paint(YELLOW, &chain)))
            }
            "recovered" => {
                let at = telling::clock(record["at-ms"].as_u64().unwrap_or(0));
                Some(format!("{at}  {}", self.paper.paint(YELLOW, &telling::recovered(record))))
            }
            // A newer router's: `--json` has them.
            _ => None,
        }
    }

    fn ruled(&mut self, record: &Value) -> String {
        let signal = &record["signal"];
        let who = telling::who(&signal["target"]);
        if let Some(id) = signal["id"].as_str() {
            self.remember(id, &who);
        }
        let at = self.paper.paint(DIM, &telling::clock(signal["at"]["received-ms"].as_u64().unwrap_or(0)));
        let marks: String = telling::marks(signal).iter().map(|mark| format!(" [{mark}]")).collect();
        let what = self.paper.paint(BOLD, &format!("{}{marks}", telling::happened(signal)));
        let faults = telling::opinions(record).into_iter().filter(|(_, failed)| *failed);
        let faults: String = faults.map(|(line, _)| format!(" | {}", self.paper.paint(RED, &line))).collect();
        let planned = telling::planned(record);
        let planned = if planned.is_empty() { String::new() } else { format!(" | {}", planned.join(", ")) };
        format!("{at}  {who}  {what} | {}{faults}{planned}", telling::decided(record))
    }

    fn remember(&mut self, id: &str, who: &str) {
        if self.rulings.insert(id.to_owned(), who.to_owned()).is_none() {
            self.order.push_back(id.to_owned());
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.rulings.remove(&oldest);
        }
    }
}
