//! The program `deathtest`: arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    coroner_deathtest::main()
}
