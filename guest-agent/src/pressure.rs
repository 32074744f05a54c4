//! Pressure rules: which PSI triggers each container gets. Documentation/accounting/psi.rst.

use std::str::FromStr;

use coroner_proto::agent::PressureOf;

/// Number of PSI lines: memory, cpu and io, each with some and full.
pub(crate) const MAX_TRIGGERS: usize = 6;
/// Windows that the kernel accepts, in microseconds: psi_trigger_create in kernel/sched/psi.c.
const WINDOW: std::ops::RangeInclusive<u32> = 500_000..=10_000_000;

/// A line of PSI, and when it fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PsiTrigger {
    /// Memory, cpu or io.
    pub of: PressureOf,
    /// The line `full`, else `some`.
    pub full: bool,
    /// Stall within the window, in microseconds.
    pub stall_us: u32,
    /// The window, in microseconds.
    pub window_us: u32,
}

impl PsiTrigger {
    /// Slow reclaim fires it about 1.5 s before an OOM kill; a container that is only busy does
    /// not.
    pub const DEFAULT: Self =
        Self { of: PressureOf::PRESSURE_OF_MEMORY, full: false, stall_us: 50_000, window_us: 500_000 };

    /// Why the kernel would refuse it; none if it would not.
    pub fn invalid_because(&self) -> Option<&'static str> {
        match self {
            _ if !WINDOW.contains(&self.window_us) => Some("the window is not 500ms to 10s"),
            _ if self.stall_us == 0 || self.stall_us > self.window_us => {
                Some("the stall is not above 0 and at most the window")
            }
            _ if self.of == PressureOf::PRESSURE_OF_UNKNOWN => Some("it is none of memory, cpu and io"),
            _ => None,
        }
    }

    pub(crate) fn line(&self) -> PsiLine {
        PsiLine { of: self.of, full: self.full }
    }
}

/// Which containers a trigger is for, and which trigger; none for "watch nothing".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PressureRule {
    /// An id, or the start of one and a `*`; none for all that no other rule names.
    pub container: Option<String>,
    /// What to watch.
    pub trigger: Option<PsiTrigger>,
}

/// Why a text is not a pressure rule.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not [ID=]OF:LINE:STALL/WINDOW, such as memory:some:50ms/500ms: {wrong}")]
pub struct PressureRuleError {
    text: String,
    wrong: &'static str,
}

impl FromStr for PressureRule {
    type Err = PressureRuleError;

    fn from_str(text: &str) -> Result<Self, PressureRuleError> {
        let wrong = |wrong| PressureRuleError { text: text.to_owned(), wrong };
        let (container, rest) = match text.split_once('=') {
            Some(("", _)) => return Err(wrong("the id is empty")),
            Some((id, rest)) => (Some(id.to_owned()), rest),
            None => (None, text),
        };
        if rest == "none" {
            return Ok(Self { container, trigger: None });
        }
        let parts: Vec<&str> = rest.split([':', '/']).collect();
        let [of, line, stall, window] = parts[..] else { return Err(wrong("it has not four parts")) };
        let of = match of {
            "memory" => PressureOf::PRESSURE_OF_MEMORY,
            "cpu" => PressureOf::PRESSURE_OF_CPU,
            "io" => PressureOf::PRESSURE_OF_IO,
            _ => return Err(wrong("it is none of memory, cpu and io")),
        };
        let full = match line {
            "some" => false,
            "full" => true,
            _ => return Err(wrong("the line is neither some nor full")),
        };
        let time =
            |text: &str| microseconds(text).ok_or_else(|| wrong("times are written 50ms, 1s or 500us"));
        let trigger = PsiTrigger { of, full, stall_us: time(stall)?, window_us: time(window)? };
        trigger
            .invalid_because()
            .map_or(Ok(Self { container, trigger: Some(trigger) }), |why| Err(wrong(why)))
    }
}

fn microseconds(text: &str) -> Option<u32> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "us" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(unit)
}

/// The triggers of a container: those that name it, else those that name none.
pub(crate) fn for_container(rules: &[PressureRule], id: &str) -> Vec<PsiTrigger> {
    let named = |rule: &&PressureRule| {
        rule.container.as_deref().is_some_and(|pattern| match pattern.strip_suffix('*') {
            Some(start) => id.starts_with(start),
            None => id == pattern,
        })
    };
    let own: Vec<&PressureRule> = rules.iter().filter(named).collect();
    let chosen =
        if own.is_empty() { rules.iter().filter(|it| it.container.is_none()).collect() } else { own };
    let mut triggers: Vec<PsiTrigger> = chosen.into_iter().filter_map(|rule| rule.trigger).collect();
    triggers.truncate(MAX_TRIGGERS);
    triggers
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PsiLine {
    pub(crate) of: PressureOf,
    pub(crate) full: bool,
}

impl PsiLine {
    pub(crate) fn file(self) -> &'static str {
        match self.of {
            PressureOf::PRESSURE_OF_CPU => "cpu.pressure",
            PressureOf::PRESSURE_OF_IO => "io.pressure",
            PressureOf::PRESSURE_OF_MEMORY | PressureOf::PRESSURE_OF_UNKNOWN => "memory.pressure",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_rule_error_names_its_mistake() {
        let rule: PressureRule = "memory:some:50ms/500ms".parse().unwrap();
        assert_eq!(rule, PressureRule { container: None, trigger: Some(PsiTrigger::DEFAULT) });
        let rule: PressureRule = "db-*=io:full:100ms/1s".parse().unwrap();
        assert_eq!(rule.container.as_deref(), Some("db-*"));
        let trigger = rule.trigger.unwrap();
        assert_eq!((trigger.full, trigger.stall_us, trigger.window_us), (true, 100_000, 1_000_000));
        assert_eq!("none".parse::<PressureRule>().unwrap().trigger, None);
        for (bad, why) in [
            ("", "four parts"),
            ("memory:some:50ms", "four parts"),
            ("disk:some:50ms/500ms", "none of memory"),
            ("memory:all:50ms/500ms", "neither some"),
            ("memory:some:50/500ms", "written"),
            ("memory:some:50ms/400ms", "window"),
            ("memory:some:50ms/11s", "window"),
            ("memory:some:0ms/500ms", "stall"),
            ("memory:some:600ms/500ms", "stall"),
            ("memory:some:4294968s/500ms", "written"),
            ("=memory:some:50ms/500ms", "id is empty"),
        ] {
            let error = bad.parse::<PressureRule>().unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn named_rules_replace_general_ones() {
        let rules: Vec<PressureRule> =
            ["memory:some:50ms/500ms", "cpu:some:1s/2s", "db-*=io:full:1s/2s", "quiet=none"]
                .map(|text| text.parse().unwrap())
                .into();
        let of = |id| for_container(&rules, id).into_iter().map(|it| it.of).collect::<Vec<_>>();
        assert_eq!(of("web"), [PressureOf::PRESSURE_OF_MEMORY, PressureOf::PRESSURE_OF_CPU]);
        assert_eq!(of("db-1"), [PressureOf::PRESSURE_OF_IO]);
        assert_eq!(of("quiet"), []);
    }
}
