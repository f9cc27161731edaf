//! Statements over a server's socket, and their rows as text, as `mariadb --batch --skip-column-names --raw` writes them: a process
//! for each of them costs more than most of what is asked.
//!
//! What only the client program understands (`DELIMITER`), or takes in parts (long scripts), is left to it.

use std::path::Path;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, OptsBuilder, Value};
use tokio::time::timeout;

/// How long a log-in may take.
const LOG_IN: Duration = Duration::from_secs(10);

/// Scripts that are longer go through the client program.
const LONGEST: usize = 1 << 20;

/// Whether [`run`] can take this script.
pub fn takes(script: &str) -> bool {
    script.len() <= LONGEST && !script.contains("DELIMITER")
}

/// Runs statements as `user`, who needs no password; all rows of all of them, or what the server said of the first that failed.
pub fn run(socket: &Path, user: &str, script: &str) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let told = runtime.block_on(async {
        let options = OptsBuilder::default()
            .ip_or_hostname("localhost")
            .socket(Some(socket.to_string_lossy()))
            .prefer_socket(Some(true))
            .user(Some(user))
            .stmt_cache_size(0)
            .max_allowed_packet(Some(2 * LONGEST))
            .wait_timeout(Some(28800));
        let mut conn = timeout(LOG_IN, Conn::new(options)).await.map_err(|_| "no answer to a log-in".to_owned())??;
        let mut text = String::new();
        let mut result = conn.query_iter(script).await?;
        while !result.is_empty() {
            for row in result.collect::<mysql_async::Row>().await? {
                let fields: Vec<String> = row.unwrap().iter().map(field).collect();
                text += &fields.join("\t");
                text.push('\n');
            }
        }
        drop(result);
        // a server that is told to go says no farewell
        let _ = conn.disconnect().await;
        Ok::<_, Failed>(text)
    });
    told.map_err(|Failed(text)| text)
}

struct Failed(String);

impl From<mysql_async::Error> for Failed {
    fn from(error: mysql_async::Error) -> Self {
        Failed(error.to_string())
    }
}

impl From<String> for Failed {
    fn from(text: String) -> Self {
        Failed(text)
    }
}

fn field(value: &Value) -> String {
    match value {
        Value::NULL => "NULL".to_owned(),
        Value::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => panic!("a row of text holds {other:?}"),
    }
}
