//! Entry point: arguments in, exit code out. Holds no logic.

use std::process::ExitCode;

fn main() -> ExitCode {
    mysql_refreshd::cli::main(std::env::args_os())
}
