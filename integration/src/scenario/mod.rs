//! Scripted conversations: one behaviour of the dns-server in one text file.
//!
//! A script has statements, each in a line of its own from the first column; indented lines are their details. `#` starts
//! a comment. Words are separated by spaces; records are in zone-file form, unknown RDATA as `\# LENGTH HEX`.
//!
//! | statement | meaning |
//! |---|---|
//! | `server --OPTION VALUE` | one more option of the dns-server |
//! | `upstream NAME TYPE [over=udp\|tcp]` | what the upstream does from now on; details are packets. None: silence |
//! | `ask udp\|tcp NAME TYPE …` | one query on a fresh socket; details are the reply. None: the name's own address |
//! | `send udp\|tcp HEX` | these very bytes; details as with `ask`, more hex in details `hex HEX` |
//! | `repeat N ask …` | N times, `{i}` in the words is 1, 2, … |
//! | `until packets=N ask …` | asks again until the upstream has had N packets for the question |
//! | `until answered ask …` | asks again as long as the reply has another rcode: failures are kept for seconds (RFC 9520) |
//! | `until ttl<=N ask …` | asks again until the first record's TTL is that low; meanwhile it never rises |
//! | `count NAME TYPE\|all packets=N [resolutions=N]` | what the upstream has had |
//! | `received NAME TYPE` | the newest query for it: header, question and the server's own OPT, nothing else |
//! | `ports distinct=N spread=N` | source ports of all UDP queries: at least that many, that far apart, all above 1023 |
//!
//! Query words: `class=CH id=N flags=rd,cd opcode=N edns=SIZE do eflags=HEX version=N option=CODE:HEX trailing=HEX`
//! `second-opt` `opt-owner=NAME` `questions=N`.
//! Upstream packets: `packet [KIND] [times=N]`, then `flags aa`, `rcode X`, `answer|authority|additional RECORD`, `opt WORDS`,
//! `trailing HEX`; KIND is a way to be wrong, all listed at `Deviation`. `close` ends a connection.
//! Replies: `silence`; `header` (12 bytes, no question) or the question's very bytes; `rcode X`; `flags qr,rd,ra`; records,
//! all of them; `opt WORDS`; `at-most N` bytes; `address`. A reply has an OPT exactly when the query had one.
//! A TTL in an expected record is the origin's: a reply may have aged since the script began, but no more than that.

mod check;
mod packets;
mod parse;
mod run;

pub use parse::Script;
pub use run::{AgentState, run};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// All scripts of a folder, by the id in front of the file's name.
///
/// # Errors
/// The folder cannot be read.
pub fn scripts(folder: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "txt")
            && let Some((rule, _)) =
                path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.split_once('-'))
        {
            let rule = rule.to_owned();
            found.insert(path, rule);
        }
    }
    Ok(found)
}
