//! Questions that only the agents can answer, over the same surface that an operator uses.

use anyhow::{Context, Result};
use heimdall_proto::v1::mesh_agent_client::MeshAgentClient;
use heimdall_proto::v1::{ListMembersRequest, LocateKeyRequest, LocateKeyResponse, MemberState};
use tonic::transport::{Channel, Endpoint};

use super::Cluster;
use crate::wire::Name;
use crate::{ownership, unary};

impl Cluster {
    /// A client of the local surface of one agent.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn agent(&self, index: usize) -> Result<MeshAgentClient<Channel>> {
        let socket = &self.replicas[index].layout.socket;
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?
            .timeout(super::READY_PATIENCE)
            .connect()
            .await
            .with_context(|| format!("connecting to {}", socket.display()))?;
        Ok(MeshAgentClient::new(channel))
    }

    /// The other members that one agent has a link with.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn members_alive(&self, index: usize) -> Result<Vec<String>> {
        let answer = self.agent(index).await?.list_members(ListMembersRequest {}).await?.into_inner();
        let is_linked = |state| {
            matches!(state, MemberState::Alive | MemberState::Starting | MemberState::Degraded | MemberState::Suspected)
        };
        let alive = answer.members.into_iter().filter(|member| !member.is_self && is_linked(member.state()));
        Ok(alive.map(|member| member.name).collect())
    }

    /// Who owns a name of type A and who has it, as one agent sees it.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn locate(&self, index: usize, name: &str) -> Result<LocateKeyResponse> {
        let request = LocateKeyRequest { key: unary::key(name) };
        Ok(self.agent(index).await?.locate_key(request).await?.into_inner())
    }

    /// Waits until `copies` members have a live entry for the name.
    ///
    /// # Errors
    /// They did not get it in time.
    pub async fn replicated(&self, asked: usize, name: &str, copies: usize) -> Result<()> {
        self.until(&format!("{copies} copies of {name}"), async || {
            self.locate(asked, name)
                .await
                .is_ok_and(|located| located.holdings.iter().filter(|holding| holding.found).count() >= copies)
        })
        .await
    }

    /// The replicas in a name's order.
    pub fn order(&self, name: &str) -> Vec<usize> {
        let name = Name::parse(name).expect("a name in a test must parse");
        let members: Vec<String> = self.replicas.iter().map(|replica| replica.layout.name.clone()).collect();
        ownership::order(&name, &members)
    }

    /// A name that starts with `label` and is owned by the replica.
    pub fn name_owned_by(&self, owner: usize, label: &str) -> String {
        (0..)
            .map(|number| format!("{label}-{number}.example."))
            .find(|name| self.order(name)[0] == owner)
            .expect("every member must own some names")
    }

    /// A name that starts with `label` and whose order is this one.
    pub fn name_ordered(&self, order: &[usize], label: &str) -> String {
        (0..)
            .map(|number| format!("{label}-{number}.example."))
            .find(|name| self.order(name).starts_with(order))
            .expect("every order must occur")
    }
}
