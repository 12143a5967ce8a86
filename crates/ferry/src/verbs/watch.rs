//! `ferry watch` and `ferry cancel`: a migration that somebody else started.

use crate::cli::{Format, OneGuestArgs};
use crate::control::client::find;
use crate::control::{Reply, Request};
use crate::error::CliError;
use crate::output;
use crate::verbs::migrate::follow;

/// Follows the migration under way, or shows the report of the last one.
pub(crate) fn watch(args: &OneGuestArgs, format: Format) -> Result<u8, CliError> {
    let (mut client, _) = find(args.id.as_str())?;
    client.send(&Request::Watch {})?;
    follow(&mut client, format)
}

/// Tells the migration under way to end.
pub(crate) fn cancel(args: &OneGuestArgs, format: Format) -> Result<u8, CliError> {
    let (mut client, _) = find(args.id.as_str())?;
    match client.ask(&Request::Cancel {})? {
        Reply::Cancelling => {}
        other => return Err(other.into_error()),
    }
    match format {
        Format::Json => output::json(&serde_json::json!({ "cancelling": { "id": args.id.as_str() } })),
        Format::Text => output::line(&format!("the migration of guest `{}` was told to end", args.id)),
    }
    Ok(0)
}
