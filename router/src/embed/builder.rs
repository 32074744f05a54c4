//! Settings of an embedded router, and its start.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::compile_process::program;
use super::{Error, Handle};
use crate::assembly::{Assembly, RunError};
use crate::config::{Config, Mistake};
use crate::source_factory::SourceFactory;

/// Name of the shim's source by default.
const NAME: &str = "shim";

/// A router in the process of a shim: [`Router::builder`] starts it, a [`Handle`] controls it.
#[derive(Debug)]
pub enum Router {}

impl Router {
    /// A router without settings. It needs a configuration and a directory.
    pub fn builder() -> RouterBuilder {
        RouterBuilder { config: None, directory: None, name: NAME.to_owned(), namespace: None }
    }
}

/// Settings of an embedded router.
#[derive(Clone, Debug)]
#[must_use = "a router runs once `start` is called"]
pub struct RouterBuilder {
    config: Option<String>,
    directory: Option<PathBuf>,
    name: String,
    namespace: Option<String>,
}

impl RouterBuilder {
    /// Sets the configuration: the text of a `coroner.toml`. It needs at least one `[[sink]]`, and
    /// no `[[source]]`, since the embedding shim is one.
    pub fn config(self, toml: impl Into<String>) -> Self {
        Self { config: Some(toml.into()), ..self }
    }

    /// Sets the directory of this router, which is created with mode 0700. Unless the configuration
    /// names other paths, the journal, the control socket, the cache of compiled policies and added
    /// guests are in it. Each router needs a directory of its own.
    pub fn directory(self, path: impl Into<PathBuf>) -> Self {
        Self { directory: Some(path.into()), ..self }
    }

    /// Sets the name of the shim as a source, in audit records and event ids: 1 to 64 characters of
    /// `a-z 0-9 -`. It must stay the same over restarts. The default is `shim`.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Sets containerd's namespace of the shim's containers. The default is the configuration's
    /// `containerd.namespace`, or else `k8s.io`.
    pub fn namespace(self, namespace: impl Into<String>) -> Self {
        Self { namespace: Some(namespace.into()), ..self }
    }

    /// Starts the router on the current tokio runtime, with what its journal has from an earlier
    /// run. Blocks while policies are compiled: seconds at the first start, milliseconds with a
    /// cache.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`], [`Error::NoRuntime`], [`Error::Directory`], [`Error::Config`] with every
    /// mistake, and [`Error::Start`]. A policy that does not load is not an error: the others rule,
    /// and [`Handle::status`] lists it as refused.
    pub fn start(self) -> Result<Handle, Error> {
        tokio::runtime::Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let text = self.config.ok_or(Error::Missing { setting: "config" })?;
        let path = self.directory.ok_or(Error::Missing { setting: "directory" })?;
        create(&path).map_err(|source| Error::Directory { path: path.clone(), source })?;
        let shim = SourceFactory::embedded_source(&self.name);
        let mut config = Config::embedded(&text, &path, &shim).map_err(refused)?;
        let namespace = config.embedded_namespace(self.namespace).map_err(refused)?;
        let compile = &mut config.policies.compile;
        compile.program = compile.program.take().or_else(program);
        let mut assembly = Assembly::start(&config).map_err(failed)?;
        assembly.serve(&config, None).map_err(failed)?;
        for source in config.sources.iter().filter(|it| it.name != shim.name) {
            assembly.follow(source);
        }
        let shim = assembly.embed(&shim, &namespace);
        let status = assembly.status(&config).expect("`serve` starts the managers that it reads");
        Ok(Handle::start(assembly, shim, status))
    }
}

/// Only the router's own user may read the journal or connect to the control socket.
fn create(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

fn refused(mistakes: Vec<Mistake>) -> Error {
    let line =
        |it: Mistake| if it.key.is_empty() { it.message } else { format!("{}: {}", it.key, it.message) };
    Error::Config { mistakes: mistakes.into_iter().map(line).collect() }
}

fn failed(error: RunError) -> Error {
    Error::Start { source: Box::new(error) }
}
