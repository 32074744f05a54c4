//! The configuration of a router that a shim embeds: the text of a `coroner.toml`, and the shim as
//! one more source.

use std::path::Path;

use coroner_core::table::{Mistake, Mistakes, Table};

use super::defaults::Defaults;
use super::file::{LONGEST_NAMESPACE, is_word};
use super::{Config, Source};

/// containerd's namespace of a node's pods.
const NAMESPACE: &str = "k8s.io";

impl Config {
    /// Checks the text of an embedded router. Its files are in `directory` by default. It needs no
    /// source: `shim` is added as the last one.
    pub(crate) fn embedded(text: &str, directory: &Path, shim: &Source) -> Result<Self, Vec<Mistake>> {
        let mut config = Self::with_defaults(text, &Defaults::embedded(directory))?;
        let mistakes = Mistakes::default();
        let values = [("name".to_owned(), shim.name.clone().into())].into_iter().collect();
        Table::new("builder", values, &mistakes).name();
        if config.sources.iter().chain(&config.guests).any(|it| it.name == shim.name) {
            mistakes.add("builder.name", format_args!("a source or guest is named `{}` too", shim.name));
        }
        config.sources.push(shim.clone());
        mistakes.none(Some(config))
    }

    /// The namespace of an embedding shim's containers: the requested one, or else the one of
    /// `[containerd]`.
    pub(crate) fn embedded_namespace(&self, requested: Option<String>) -> Result<String, Vec<Mistake>> {
        let configured = || self.containerd.as_ref().map(|it| it.namespace.clone());
        let namespace = requested.or_else(configured).unwrap_or_else(|| NAMESPACE.to_owned());
        if is_word(&namespace, LONGEST_NAMESPACE) {
            return Ok(namespace);
        }
        let message = format!("`{namespace}` is not a containerd namespace, such as \"{NAMESPACE}\"");
        Err(vec![Mistake { key: "builder.namespace".to_owned(), message }])
    }
}
