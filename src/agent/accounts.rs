//! The destination's own accounts: captured from its running server as rows of the grant tables, put in place of
//! production's in the copy. Rows are exact (dual passwords, proxies and grants on absent objects included) where both
//! servers have the same columns; anything else is refused here, never approximated.
//!
//! Password hashes pass through memory only: they are not sent, logged or written anywhere but into the copy.

use mysql_async::Value;

use super::sql::Sql;
use crate::mysql::Flavour;
use crate::mysql::identifier::quote_identifier;
use crate::problem::{Outcome, Problem};

/// The grant tables. Source: MariaDB, "The mysql Database Tables"; proven on MariaDB 10.11.19 and MySQL 9.7.4 by equal SHOW
/// GRANTS, equal checksums and log-ins.
fn tables(flavour: Flavour) -> &'static [&'static str] {
    match flavour {
        Flavour::MariaDb => {
            &["global_priv", "db", "tables_priv", "columns_priv", "procs_priv", "proxies_priv", "roles_mapping"]
        }
        _ => &[
            "user",
            "db",
            "tables_priv",
            "columns_priv",
            "procs_priv",
            "proxies_priv",
            "global_grants",
            "role_edges",
            "default_roles",
            "password_history",
        ],
    }
}

/// The content of one grant table.
struct Table {
    name: &'static str,
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
}

/// All accounts, roles and grants of a server.
pub struct Accounts {
    tables: Vec<Table>,
}

/// Reads them from a running server.
pub async fn capture(sql: &mut Sql, flavour: Flavour) -> Outcome<Accounts> {
    same_values(sql).await?;
    let mut all = Vec::new();
    for name in tables(flavour) {
        let columns = columns(sql, name).await?;
        let rows = rows(sql, name, &columns).await?;
        all.push(Table { name, columns, rows });
    }
    Ok(Accounts { tables: all })
}

impl Accounts {
    /// Accounts and roles, the server's own left out.
    pub fn number(&self) -> u64 {
        let reserved = |row: &Vec<Value>| {
            row.iter().any(
                |v| matches!(v, Value::Bytes(b) if b == b"mariadb.sys" || b == b"PUBLIC" || b.starts_with(b"mysql.")),
            )
        };
        self.tables.first().map_or(0, |table| table.rows.iter().filter(|row| !reserved(row)).count() as u64)
    }

    /// Puts them in place of what the copy holds, and reads them back. The session that does it keeps its rights until it
    /// ends; the account it logged in with is gone afterwards.
    pub async fn restore(&self, sql: &mut Sql) -> Outcome<()> {
        same_values(sql).await?;
        for table in &self.tables {
            let theirs = columns(sql, table.name).await?;
            if theirs != table.columns {
                return Err(Problem::refused(format!(
                    "mysql.{} has other columns in the copy than on the destination",
                    table.name
                ))
                .hint("Accounts can be kept exactly only between servers of the same version."));
            }
        }
        for table in &self.tables {
            sql.execute(&format!("DELETE FROM mysql.{}", table.name)).await?;
            if !table.rows.is_empty() {
                let marks = vec!["?"; table.columns.len()].join(",");
                let statement = format!("INSERT INTO mysql.{} ({}) VALUES ({marks})", table.name, list(&table.columns));
                sql.insert(&statement, table.rows.clone()).await?;
            }
        }
        for table in &self.tables {
            if rows(sql, table.name, &table.columns).await? != table.rows {
                return Err(Problem::failed(format!(
                    "mysql.{} does not hold the destination's rows after the restore",
                    table.name
                )));
            }
        }
        sql.execute("FLUSH PRIVILEGES").await
    }
}

/// Times are read and written in one time zone, whatever the servers' are, and zero dates go in as they came.
async fn same_values(sql: &mut Sql) -> Outcome<()> {
    sql.execute("SET time_zone = '+00:00'").await?;
    sql.execute("SET sql_mode = ''").await
}

/// Columns that hold data; generated ones cannot be written.
async fn columns(sql: &mut Sql, table: &str) -> Outcome<Vec<String>> {
    sql.column(&format!(
        "SELECT COLUMN_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = 'mysql' AND TABLE_NAME = '{table}' \
         AND COALESCE(GENERATION_EXPRESSION, '') = '' ORDER BY ORDINAL_POSITION"
    ))
    .await
}

async fn rows(sql: &mut Sql, table: &str, columns: &[String]) -> Outcome<Vec<Vec<Value>>> {
    let list = list(columns);
    sql.values(&format!("SELECT {list} FROM mysql.{table} ORDER BY {list}")).await
}

fn list(columns: &[String]) -> String {
    columns.iter().map(|c| quote_identifier(c)).collect::<Vec<_>>().join(",")
}
