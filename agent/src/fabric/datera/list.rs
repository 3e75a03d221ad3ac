//! Whole lists, page by page, while others make and delete.
//!
//! A page is asked for by the number of its first row, and a deletion moves all rows behind it: the first row of the next
//! page would go by unseen. So every page begins with the last row of the one before. Where that row is another one, some
//! have moved, and the list is gone back a page.

use std::collections::HashSet;

use serde::de::DeserializeOwned;

use super::{Datera, wire};
use crate::fabric::{FabricError, Op};

/// Most entries of one list; beyond, something is wrong with the paging.
const LIST_MAX: usize = 100_000;
/// Most times that a list is gone back in. Who deletes a page of volumes between any two requests of ours, for so long, is
/// not to keep us busy for ever.
const BACK_MAX: usize = 100;

impl Datera {
    /// A whole list; `key` tells rows apart. Every row that is there all the time is in it, once.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        op: &Op,
        path: &str,
        key: fn(&T) -> String,
    ) -> Result<Vec<T>, FabricError> {
        let limit = self.rest.settings.page_size as usize;
        let (mut all, mut known) = (Vec::new(), HashSet::new());
        let (mut offset, mut back) = (0_usize, 0);
        // The first row of the next page has to be one that is known.
        let mut overlaps = false;
        loop {
            let query = [("limit", limit.to_string()), ("offset", offset.to_string())];
            let mut envelope = match self.rest.get_with(op, path, &query).await {
                // An empty sub-resource may be an error.
                Err(FabricError::Refused { message, .. }) if message.starts_with("No data at ") => {
                    return Ok(all);
                }
                other => other?,
            };
            let page: wire::Page = envelope
                .get_mut("metadata")
                .and_then(|metadata| serde_json::from_value(metadata.take()).ok())
                .unwrap_or_default();
            let rows: Vec<T> = wire::data(envelope, path).map_err(|failed| failed.error)?;
            let got = rows.len();
            let moved = overlaps && rows.first().is_none_or(|row| !known.contains(&key(row)));
            for row in rows {
                if known.insert(key(&row)) {
                    all.push(row);
                }
            }
            if all.len() > LIST_MAX {
                return Err(malformed(path, format!("more than {LIST_MAX} entries")));
            }
            if moved {
                back += 1;
                if back > BACK_MAX {
                    let detail = "a list that changes faster than it can be read".to_owned();
                    return Err(malformed(path, detail));
                }
                offset = offset.saturating_sub(limit);
                overlaps = offset > 0;
                continue;
            }
            let end = offset + got;
            // Without a number a full page may have another one behind it.
            let complete = match page.total_count.or(page.total) {
                Some(total) => end as u64 >= total,
                None => got < limit,
            };
            if complete || got == 0 {
                return Ok(all);
            }
            // Pages of one row cannot overlap.
            overlaps = got > 1;
            offset = if overlaps { end - 1 } else { end };
        }
    }
}

fn malformed(path: &str, detail: String) -> FabricError {
    FabricError::Malformed {
        what: path.to_owned(),
        detail,
    }
}
