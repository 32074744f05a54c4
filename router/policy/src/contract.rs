//! The contract check: what a component must export and may import, read from its bytes before they
//! are compiled.
//! The field's name: sandbox, capability.

use serde::{Deserialize, Serialize};
use wasmparser_engine::component_types::ComponentEntityType;
use wasmparser_engine::types::{Types, TypesRef};
use wasmparser_engine::{Encoding, Parser, Payload, Validator, WasmFeatures};

use super::bindings::{Contract, PACKAGE};
use super::policy_log::shortened;

/// Why a component does not keep the contract.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum ContractError {
    /// The bytes are not a component.
    #[error("is not a WebAssembly component: {0}")]
    Component(String),
    /// It has another world, or another version of this one.
    #[error("{0}")]
    World(String),
    /// It imports more than a policy gets.
    #[error("imports {}, which is not allowed: a policy may import coroner:policy/log and coroner:policy/evidence, and the clocks, random numbers and output of WASI 0.2", .0.join(", "))]
    Imports(Vec<String>),
}

/// Checks the bytes of a component.
pub(super) fn check(bytes: &[u8]) -> Result<(), ContractError> {
    let types = validated(bytes)?;
    let types = types.as_ref();
    let (imports, exports) = names(bytes)?;
    exported(&exports)?;
    let mut refused = Vec::new();
    for name in imports {
        match allowance(&name) {
            Allowance::All => {}
            Allowance::Nothing => refused.push(name),
            Allowance::NoFiles => refused.extend(opening(types, &name)),
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(ContractError::Imports(refused)) }
}

enum Allowance {
    All,
    /// Everything except opening, creating and removing files: these need a directory, and a policy
    /// has none.
    NoFiles,
    Nothing,
}

/// The interfaces of WASI 0.2 that are linked.
const WASI: [&str; 6] = [
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:io/",
    "wasi:random/",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
];

fn allowance(import: &str) -> Allowance {
    let ours = |contract: Contract| {
        let is = |it: &&str| import == format!("{PACKAGE}/{it}@{}", contract.version());
        contract.imports().iter().any(is)
    };
    if Contract::ALL.into_iter().any(ours) {
        return Allowance::All;
    }
    // A program's standard library imports the filesystem interface for its output alone.
    if import.starts_with("wasi:filesystem/types@0.2.") {
        return Allowance::NoFiles;
    }
    let ours = WASI.iter().any(|it| import.starts_with(it)) && import.contains("@0.2.");
    if ours { Allowance::All } else { Allowance::Nothing }
}

/// Functions of this import that open something by a path.
fn opening(types: TypesRef<'_>, import: &str) -> Vec<String> {
    let Some(ComponentEntityType::Instance(id)) = types.component_item_for_import(import).map(|it| it.ty)
    else {
        return vec![import.to_owned()];
    };
    let names = types[id].exports.keys();
    names.filter(|name| name.ends_with("-at")).map(|name| format!("{import} {name}")).collect()
}

fn exported(exports: &[String]) -> Result<(), ContractError> {
    let served = Contract::ALL.map(Contract::rules);
    if served.iter().any(|rules| exports.contains(rules)) {
        return Ok(());
    }
    let other = exports.iter().find(|name| name.starts_with(&format!("{PACKAGE}/rules")));
    let served = served.join(" or ");
    Err(ContractError::World(match other {
        Some(other) => format!("is built for {other}; this router serves {served}"),
        None => format!("does not export {served}: {}", list(exports)),
    }))
}

fn list(exports: &[String]) -> String {
    match exports {
        [] => "it exports nothing".to_owned(),
        names => format!("it exports {}", shortened(&names.join(", "))),
    }
}

fn validated(bytes: &[u8]) -> Result<Types, ContractError> {
    let wrong = |reason: String| ContractError::Component(shortened(&reason));
    match bytes.get(..8) {
        Some([0, b'a', b's', b'm', 1, 0, 0, 0]) => {
            return Err(wrong(
                "it is a core module; wit-component or `wasm-tools component new` makes a component of it"
                    .to_owned(),
            ));
        }
        Some([0, b'a', b's', b'm', ..]) => {}
        _ => return Err(wrong("it does not begin with `\\0asm`".to_owned())),
    }
    Validator::new_with_features(WasmFeatures::default())
        .validate_all(bytes)
        .map_err(|error| wrong(error.to_string()))
}

/// Names of the component's own imports and exports, without those of nested components.
fn names(bytes: &[u8]) -> Result<(Vec<String>, Vec<String>), ContractError> {
    let wrong = |error: wasmparser_engine::BinaryReaderError| ContractError::Component(error.to_string());
    let (mut imports, mut exports, mut depth) = (Vec::new(), Vec::new(), 0_usize);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(wrong)? {
            Payload::Version { encoding: Encoding::Component | Encoding::Module, .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    imports.push(import.map_err(wrong)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    exports.push(export.map_err(wrong)?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok((imports, exports))
}
