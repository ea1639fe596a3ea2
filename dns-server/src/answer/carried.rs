//! A flight on the way of the query that began it.
//!
//! Nearly always that query waits until the flight has landed, and a task for each of the two would cost as much again as the
//! miss: memory, a turn of the runtime, waking one by the other. So the query carries its flight, and lets go of it when it
//! has its answer before the flight's end, or is itself given up.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::{Outcome, Seat};

/// A flight that is carried. Dropped before its end, it goes on as a task of its own.
pub(super) struct Carried<'a, F: Future<Output = ()> + Send + 'static> {
    flight: Option<Pin<Box<F>>>,
    tasks: &'a TaskTracker,
}

impl<'a, F: Future<Output = ()> + Send + 'static> Carried<'a, F> {
    /// Carries `flight`, or leaves it to `tasks`.
    pub(super) fn new(flight: F, tasks: &'a TaskTracker) -> Self {
        Self { flight: Some(Box::pin(flight)), tasks }
    }

    /// What those get who wait in `seat` of this flight, as soon as there is something.
    pub(super) async fn landing(mut self, seat: &Seat) -> Outcome {
        poll_fn(|context| {
            let Some(flight) = &mut self.flight else { return Poll::Ready(Outcome::Failed) };
            if flight.as_mut().poll(context).is_ready() {
                self.flight = None;
            }
            // A flight lands at its end, or before it.
            match seat.flight.outcome.get() {
                Some(outcome) => Poll::Ready(outcome.clone()),
                None if self.flight.is_none() => Poll::Ready(Outcome::Failed),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl<F: Future<Output = ()> + Send + 'static> Drop for Carried<'_, F> {
    fn drop(&mut self) {
        // Without a runtime the process is ending: the flight's own end tells whoever waits.
        if let (Some(flight), Ok(runtime)) = (self.flight.take(), Handle::try_current()) {
            self.tasks.spawn_on(flight, &runtime);
        }
    }
}
