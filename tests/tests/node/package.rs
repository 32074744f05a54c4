//! The package's life on the node, with the commands of docs/operating/install.md. Its upgrade is
//! one of the faults.

use coroner_tests::report::{print, timed};

use crate::installed;

#[test]
fn package_is_installed_configured_and_removed() {
    let _timed = timed("package_is_installed_configured_and_removed");
    let node = installed("package");
    node.run("systemctl enable --now coroner-agent.service coroner.service").unwrap();
    node.run("coroner status").unwrap();
    node.run("coroner doctor --write").unwrap();
    node.run("systemctl restart containerd").unwrap();
    let doctor = node.run("coroner doctor").unwrap();
    print(format_args!("{doctor}"));
    let kinds = "deathtest run --image localhost/busybox:1 --case oom-pid-1 --case exit-7";
    print(node.run(kinds).unwrap().trim_end());

    for (unit, most) in [("coroner", 2.2), ("coroner-agent", 3.2)] {
        let line = format!("systemd-analyze security --no-pager {unit}.service | tail -1");
        let text = node.run(&line).unwrap();
        print(text.trim_end());
        let level: f32 = text.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
        assert!(level <= most, "{text}");
    }

    assert!(!node.output("apt-get remove -y coroner").unwrap().status.success(), "containerd needs it");
    let removed = node.output("coroner doctor --uninstall --write").unwrap();
    let text = String::from_utf8(removed.stdout).unwrap();
    assert!(removed.status.code() == Some(1) && text.contains("systemctl restart containerd"), "{text}");
    node.run("systemctl restart containerd").unwrap();
    node.run("coroner doctor --uninstall").unwrap();
    node.run("apt-get remove -y coroner").unwrap();
    // The stock shim may lose the kill: that is exit code 1.
    let output = node.output(kinds).unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    node.run("apt-get purge -y coroner").unwrap();
    let left =
        node.run("find /etc /usr /var/lib /var/log /run /sys/kernel/tracing -name '*coroner*'").unwrap();
    assert_eq!(left.lines().find(|path| !path.starts_with("/var/lib/dpkg/")), None, "{left}");
}
