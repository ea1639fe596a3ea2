//! Clients that ask all the time, and write down what they are told.

use std::time::Duration;

use heimdall_shared::clock::Moment;
use rand::RngExt as _;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Asked, History, Told, told};
use crate::client::{Client, question};
use crate::service::Service;
use crate::wire::Name;

/// An answer that has not come by then is lost: above the query budget of 4 s, so that what comes late is told apart.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(6);

/// Between two rounds of questions.
const ROUND: Duration = Duration::from_millis(10);

/// How much is asked, and what.
#[derive(Clone)]
pub struct Pace {
    /// Questions in a second, to all replicas together.
    pub per_second: u32,
    /// Names, the most popular one first: the n-th is asked for 1/n times as often (Zipf 1.0).
    pub names: Vec<String>,
    /// Where each question goes.
    pub service: Service,
}

/// Clients at work.
pub struct Load {
    stop: CancellationToken,
    clients: JoinHandle<TaskTracker>,
}

impl Load {
    /// Lets them ask until [`Load::end`].
    pub fn begin(history: &History, pace: Pace) -> Self {
        let stop = CancellationToken::new();
        let clients = tokio::spawn(ask(history.clone(), pace, stop.clone()));
        Self { stop, clients }
    }

    /// Asks no more, and waits until everybody was told or has given up.
    ///
    /// # Panics
    /// The clients panicked.
    pub async fn end(self) {
        self.stop.cancel();
        let tasks = self.clients.await.expect("clients never panic");
        tasks.close();
        tasks.wait().await;
    }
}

async fn ask(history: History, pace: Pace, stop: CancellationToken) -> TaskTracker {
    let tasks = TaskTracker::new();
    let weights: Vec<f64> = (1..=pace.names.len()).map(|rank| 1.0 / rank as f64).collect();
    let total: f64 = weights.iter().sum();
    let mut due = 0.0;
    let mut rounds = interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    while stop.run_until_cancelled(rounds.tick()).await.is_some() {
        due += f64::from(pace.per_second) * ROUND.as_secs_f64();
        while due >= 1.0 {
            due -= 1.0;
            let mut at = rand::rng().random_range(0.0..total);
            let rank = weights.iter().position(|weight| {
                at -= weight;
                at < 0.0
            });
            let name = pace.names[rank.unwrap_or_default()].clone();
            let (replica, server) = pace.service.pick();
            tasks.spawn(one(history.clone(), server, replica, name));
        }
    }
    tasks
}

/// One question, sent once.
async fn one(history: History, server: Client, replica: usize, name: String) {
    let (query, parsed) = (question(&name, "A"), Name::parse(&name));
    let (Ok(query), Ok(parsed)) = (query, parsed) else { panic!("{name} must be a name that can be asked for") };
    let at = Moment::now();
    let reply = timeout(LOST_AFTER, server.exchange_udp(&query)).await;
    let told = match reply {
        Ok(Ok(reply)) => told(&reply, &parsed),
        Ok(Err(_)) => Told::Failure,
        Err(_) => Told::Nothing,
    };
    history.asked(Asked { replica, name, at, told_at: Moment::now(), told });
}
