//! Quotas and what is used of them.

use berth_proto::v1;

use super::{Meaning, cell, table as render};

/// One line an identity or label.
pub(crate) fn table(answer: &v1::ListQuotasResponse) -> String {
    render(
        &["ACCOUNT", "RESERVATIONS", "DMA ENTRIES", "PINNED BYTES", "QUOTA OF", "AT"],
        answer.quotas.iter().map(|quota| {
            let mut row = vec![cell(&quota.account, Meaning::Plain)];
            row.extend(["reservations", "dma_entries", "pinned_bytes"].map(|resource| {
                let amount = quota.amounts.iter().find(|amount| amount.resource == resource);
                amount.map_or_else(|| cell("", Meaning::Plain), share)
            }));
            row.push(cell(&quota.quota, Meaning::Plain));
            row.push(cell(&quota.place, Meaning::Plain));
            row
        }),
    )
}

/// `3 of 4`, or `3` where there is no limit.
fn share(amount: &v1::QuotaAmount) -> comfy_table::Cell {
    match amount.limit {
        None => cell(amount.used.to_string(), Meaning::Plain),
        Some(limit) => {
            let meaning = if amount.used >= limit { Meaning::Bad } else { Meaning::Plain };
            cell(format!("{} of {limit}", amount.used), meaning)
        }
    }
}
