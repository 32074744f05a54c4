//! A real ttrpc server and client over links that the guard is on.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coroner_proto::agent::{HelloRequest, HelloResponse, SettleRequest, SettleResponse};
use coroner_proto::agent_ttrpc::{Agent, AgentClient, create_agent};
use coroner_transport::limits::MAX_FRAME;
use coroner_transport::{Address, connect, listen};
use ttrpc::asynchronous::{Client, Server, TtrpcContext};
use ttrpc::context;

struct Echo;

#[async_trait]
impl Agent for Echo {
    /// Answers with as many bytes as the request has.
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<HelloResponse> {
        Ok(HelloResponse { agent_version: request.router_version, ..HelloResponse::default() })
    }

    /// Answers a short request with an oversized frame.
    async fn settle(&self, _: &TtrpcContext, _: SettleRequest) -> ttrpc::Result<SettleResponse> {
        let exit =
            coroner_proto::agent::Exited { unknown_because: "x".repeat(MAX_FRAME + 1), ..Default::default() };
        Ok(SettleResponse { exit: Some(exit).into(), ..SettleResponse::default() })
    }
}

fn timeout() -> context::Context {
    context::with_duration(Duration::from_secs(10))
}

fn hello(length: usize) -> HelloRequest {
    HelloRequest { router_version: "x".repeat(length), ..HelloRequest::default() }
}

#[tokio::test]
async fn oversized_frame_closes_only_its_own_link() {
    let folder = tempfile::tempdir().expect("a folder");
    let address = Address::Unix(folder.path().join("echo.sock"));
    let listener = listen(&address).expect("it listens");
    let mut server = Server::new().add_listener(listener).register_service(create_agent(Arc::new(Echo)));
    server.start().await.expect("it starts");
    let link = async || AgentClient::new(Client::new(connect(&address).await.expect("it answers")));

    let (good, too_long, fooled) = (link().await, link().await, link().await);
    // Room for what ttrpc puts around a message: service, method, deadline.
    let longest = MAX_FRAME - 256;
    let answer = good.hello(timeout(), &hello(longest)).await.expect("it fits");
    assert_eq!(answer.agent_version.len(), longest);

    too_long.hello(timeout(), &hello(MAX_FRAME + 1)).await.expect_err("the server closes the link");
    too_long.hello(timeout(), &hello(1)).await.expect_err("and it stays closed");
    fooled.settle(timeout(), &SettleRequest::default()).await.expect_err("the client closes the link");

    assert_eq!(good.hello(timeout(), &hello(7)).await.expect("the other links live").agent_version.len(), 7);
    link().await.hello(timeout(), &hello(1)).await.expect("new links come");
    server.shutdown().await.expect("it stops");
}
