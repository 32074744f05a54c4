//! `coroner policy wrap`: a core module that carries its world, as the SDK has the compiler make it, into a component.

use std::path::Path;
use std::process::ExitCode;

use wit_component::ComponentEncoder;

use crate::cli::{FAILED, WRONG};

#[expect(clippy::print_stdout, reason = "what was made is what the command tells")]
pub(crate) fn run(core: &Path, file: &Path) -> ExitCode {
    let failed = |path: &Path, error: std::io::Error| {
        eprintln!("coroner: {}: {error}", path.display());
        ExitCode::from(FAILED)
    };
    let module = match std::fs::read(core) {
        Ok(module) => module,
        Err(error) => return failed(core, error),
    };
    let mut encoder = ComponentEncoder::default();
    let component = match encoder.validate(true).module(&module).and_then(ComponentEncoder::encode) {
        Ok(component) => component,
        Err(error) => {
            eprintln!("coroner: {} cannot be made a component: {error:#}", core.display());
            return WRONG.into();
        }
    };
    if let Err(error) = std::fs::write(file, &component) {
        return failed(file, error);
    }
    println!("{}: {} bytes; `coroner policy check {0}` looks at it", file.display(), component.len());
    ExitCode::SUCCESS
}
