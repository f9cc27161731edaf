//! SQL over a server's unix socket: connections and small queries. Every call has a time limit.
//!
//! Knows no MySQL facts beyond syntax; what to ask stands with those who ask.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Error, OptsBuilder, Row, Value};
use secrecy::{ExposeSecret, SecretString};

use crate::instance::Instance;
use crate::problem::{Outcome, Problem};

/// Time a small query may take.
const QUERY_LIMIT: Duration = Duration::from_secs(60);

/// Time a log-in may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A lock was not to be had in the session's `lock_wait_timeout`, or not without a deadlock.
const LOCK_ERRORS: [u16; 2] = [1205, 1213];

/// One connection.
pub struct Sql {
    conn: Conn,
}

/// A row of texts; NULL is None.
pub type Texts = Vec<Option<String>>;

impl Sql {
    /// Logs in to a running instance.
    pub async fn open(instance: &Instance, password: Option<&SecretString>) -> Outcome<Self> {
        Self::at(&instance.socket, &instance.user, password).await
    }

    /// Logs in over a socket.
    pub async fn at(socket: &Path, user: &str, password: Option<&SecretString>) -> Outcome<Self> {
        let opts = OptsBuilder::default()
            .ip_or_hostname("localhost")
            .socket(Some(socket.to_string_lossy()))
            .prefer_socket(Some(true))
            .user(Some(user))
            .pass(password.map(|p| p.expose_secret().to_owned()))
            .stmt_cache_size(0);
        let attempt = tokio::time::timeout(CONNECT_LIMIT, Conn::new(opts)).await;
        let failed = || Problem::failed(format!("cannot log in as {user:?} over {}", socket.display()));
        match attempt {
            Ok(Ok(conn)) => Ok(Self { conn }),
            Ok(Err(error)) => Err(login_hint(failed().because(&error), &error)),
            Err(_) => Err(failed().cause(format!("no answer within {} s", CONNECT_LIMIT.as_secs()))),
        }
    }

    /// Runs a statement without result.
    pub async fn execute(&mut self, statement: &str) -> Outcome<()> {
        self.bounded(statement, QUERY_LIMIT, async |conn: &mut Conn| conn.query_drop(statement).await).await
    }

    /// The same for a statement that waits for locks; false: it did not get them in `lock_wait_timeout`.
    pub async fn within_lock_wait(&mut self, statement: &str) -> Outcome<bool> {
        let failed = || Problem::failed(format!("the server refused: {}", shorten(statement)));
        match tokio::time::timeout(QUERY_LIMIT, self.conn.query_drop(statement)).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(Error::Server(error))) if LOCK_ERRORS.contains(&error.code) => Ok(false),
            Ok(Err(error)) => Err(failed().because(&error)),
            Err(_) => Err(failed().cause(format!("no answer within {} s", QUERY_LIMIT.as_secs()))),
        }
    }

    /// Runs a statement with parameters, as often as there are rows.
    pub async fn insert(&mut self, statement: &str, rows: Vec<Vec<Value>>) -> Outcome<()> {
        self.bounded(statement, QUERY_LIMIT, async |conn: &mut Conn| {
            conn.exec_batch(statement, rows.into_iter().map(mysql_async::Params::Positional)).await
        })
        .await
    }

    /// All rows, as the binary protocol gives them.
    pub async fn values(&mut self, query: &str) -> Outcome<Vec<Vec<Value>>> {
        let rows: Vec<Row> =
            self.bounded(query, QUERY_LIMIT, async |conn: &mut Conn| conn.exec(query, ()).await).await?;
        Ok(rows.into_iter().map(cells).collect())
    }

    /// All rows as texts.
    pub async fn texts(&mut self, query: &str) -> Outcome<Vec<Texts>> {
        let rows: Vec<Row> = self.bounded(query, QUERY_LIMIT, async |conn: &mut Conn| conn.query(query).await).await?;
        Ok(rows.into_iter().map(|row| cells(row).into_iter().map(text).collect()).collect())
    }

    /// All rows with their column names, for statements like SHOW whose columns differ between versions.
    pub async fn named(&mut self, query: &str) -> Outcome<Vec<BTreeMap<String, String>>> {
        let rows: Vec<Row> = self.bounded(query, QUERY_LIMIT, async |conn: &mut Conn| conn.query(query).await).await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let names: Vec<String> = row.columns_ref().iter().map(|c| c.name_str().into_owned()).collect();
                names.into_iter().zip(cells(row)).map(|(name, value)| (name, text(value).unwrap_or_default())).collect()
            })
            .collect())
    }

    /// First column of all rows, NULLs left out.
    pub async fn column(&mut self, query: &str) -> Outcome<Vec<String>> {
        Ok(self.texts(query).await?.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
    }

    /// The one number that a query gives; 0 without a row.
    pub async fn number(&mut self, query: &str) -> Outcome<u64> {
        Ok(self.column(query).await?.first().and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// Two columns as a map; names in lower case, NULL as an empty text.
    pub async fn pairs(&mut self, query: &str) -> Outcome<BTreeMap<String, String>> {
        pairs(self.texts(query).await?)
    }

    /// All global variables.
    pub async fn variables(&mut self) -> Outcome<BTreeMap<String, String>> {
        pairs(self.texts("SHOW GLOBAL VARIABLES").await?)
    }

    /// One global status value.
    pub async fn status(&mut self, name: &str) -> Outcome<u64> {
        let rows = pairs(self.texts(&format!("SHOW GLOBAL STATUS LIKE '{name}'")).await?)?;
        Ok(rows.values().next().and_then(|text| text.parse().ok()).unwrap_or(0))
    }

    /// Ends the session politely.
    pub async fn close(self) {
        let _ = tokio::time::timeout(Duration::from_secs(2), self.conn.disconnect()).await;
    }

    async fn bounded<T>(
        &mut self,
        statement: &str,
        limit: Duration,
        work: impl AsyncFnOnce(&mut Conn) -> Result<T, Error>,
    ) -> Outcome<T> {
        let failed = || Problem::failed(format!("the server refused: {}", shorten(statement)));
        match tokio::time::timeout(limit, work(&mut self.conn)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(failed().because(&error)),
            Err(_) => Err(failed().cause(format!("no answer within {} s", limit.as_secs()))),
        }
    }
}

/// A row's values; a value already taken counts as NULL.
fn cells(row: Row) -> Vec<Value> {
    row.unwrap_raw().into_iter().map(|value| value.unwrap_or(Value::NULL)).collect()
}

fn pairs(rows: Vec<Texts>) -> Outcome<BTreeMap<String, String>> {
    let mut map = BTreeMap::new();
    for row in rows {
        let mut cells = row.into_iter();
        if let (Some(Some(name)), value) = (cells.next(), cells.next().flatten()) {
            map.insert(name.to_lowercase(), value.unwrap_or_default());
        }
    }
    Ok(map)
}

/// A value as text; binary data that is no UTF-8 is shown with replacement characters.
pub fn text(value: Value) -> Option<String> {
    match value {
        Value::NULL => None,
        Value::Bytes(bytes) => {
            Some(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
        }
        Value::Int(n) => Some(n.to_string()),
        Value::UInt(n) => Some(n.to_string()),
        Value::Float(n) => Some(n.to_string()),
        Value::Double(n) => Some(n.to_string()),
        other => Some(other.as_sql(true).trim_matches('\'').to_owned()),
    }
}

fn login_hint(problem: Problem, error: &Error) -> Problem {
    match error {
        Error::Server(e) if e.code == 1698 => problem.hint(
            "The account authenticates by unix_socket: run as the operating system account of the same name, or set `user` and `password` of the host.",
        ),
        Error::Server(e) if e.code == 1045 => problem.hint("Check `user` and `password` of the host."),
        Error::Io(_) => problem.hint("Check `socket` of the host, and that the server is running."),
        _ => problem,
    }
}

/// Statements may be long, and those that set something may hold a value: only their beginning is shown.
fn shorten(statement: &str) -> String {
    let short: String = statement.chars().take(80).collect();
    short.split(" IDENTIFIED").next().unwrap_or_default().to_owned()
}
