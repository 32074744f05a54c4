//! The platform of our users: systemd, cgroup v2 only, containerd 2, the Debian package installed
//! with apt. The node is a virtual machine; `cargo xtask node build --without-kubernetes` makes it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod causes;
mod deaths;
mod faults;
mod kernel;
mod package;

use std::path::{Path, PathBuf};

use coroner_tests::binary;
use coroner_tests::node::Node;

/// A node with the package and `deathtest`, and nothing configured.
fn installed(name: &str) -> Node {
    let node = Node::up(name).unwrap();
    node.copy(&package(), "/tmp/coroner.deb").unwrap();
    node.copy(&binary::find("deathtest", "coroner-deathtest").unwrap(), "/usr/local/bin/deathtest").unwrap();
    // An operator's command. The node reaches no mirror, and the package needs none.
    node.run("apt-get install -y --no-install-recommends /tmp/coroner.deb").unwrap();
    node
}

fn package() -> PathBuf {
    let file = binary::target("package").unwrap().join("coroner.deb");
    assert!(file.is_file(), "{} is missing: cargo xtask package", file.display());
    file
}

/// A file of `tests/programs/node/coroner`.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/node/coroner").join(name)
}

/// A script that runs in a node.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/node").join(name)
}
