//! The trait a policy implements: everything but the name and `rule` has a default.

use crate::{Action, CaseFile, Kinds, Known, Ruling, Signal, config};

/// Wrong keys of `[config]`, each with a message. A key within a table is `table.key`.
pub type Mistakes = Vec<(String, String)>;

/// An exit-reason policy.
///
/// It answers from its arguments alone: at load the router runs it on a used and on fresh
/// instances, and refuses it when their answers differ.
pub trait Policy: Default + Send + Sync + 'static {
    /// Its name in logs and audit records: lower case words with dashes between.
    const NAME: &str;

    /// The kinds of signal [`rule`](Self::rule) is called for; by default all of them.
    fn wants() -> Kinds {
        Kinds::all()
    }

    /// Facts it requires; the router warns of sources without one. By default nothing.
    fn needs() -> Known {
        Known::empty()
    }

    /// The JSON Schema of what [`configure`](Self::configure) takes; by default none.
    fn config_schema() -> Option<String> {
        None
    }

    /// Starts it from the `[config]` table as JSON, or `{}`. Called once, before any signal.
    ///
    /// By default a policy has no configuration and refuses every key. A policy with one turns the
    /// feature `config` on, derives `Deserialize`, and answers `config::parse(json)`.
    ///
    /// # Errors
    /// The keys that are wrong, all of them at once.
    fn configure(json: &str) -> Result<Self, Mistakes> {
        config::none(json)?;
        Ok(Self::default())
    }

    /// Rules on a signal. `case` is what was known of the container before it, `draft` the ruling
    /// so far: [`Ruling::Pass`] leaves it, [`Ruling::decide`] replaces it.
    ///
    /// # Errors
    /// Why it cannot rule. The draft is kept and the text is audited, as after a fault.
    fn rule(&self, signal: &Signal, case: &CaseFile, draft: &[Action]) -> Result<Ruling, String>;
}
