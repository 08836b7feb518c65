//! Requests to targets, by host and path.

mod access;
mod route;

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;

use self::access::{Access, Asked};
pub use self::route::{InvalidPathPrefix, PathPrefix, Route};
use crate::{
    answer::{HttpBody, Refused},
    ask::{Ask, AskActor},
    component::{Component, HttpComponent},
    host::HttpHost,
    request::{Checked, HeadLimits},
};

type Answer = Pin<Box<dyn Future<Output = Response<HttpBody>> + Send>>;

/// Whoever answers requests.
trait Serve: Send + Sync {
    fn serve(self: Arc<Self>, request: Checked) -> Answer;
}

impl<U: HttpHost> Serve for Component<U> {
    fn serve(self: Arc<Self>, request: Checked) -> Answer {
        Box::pin(self.serve(request))
    }
}

impl Serve for Ask {
    fn serve(self: Arc<Self>, request: Checked) -> Answer {
        Box::pin(self.serve(request))
    }
}

/// Where a route leads: an [`HttpComponent`] or an [`AskActor`].
#[derive(Clone)]
pub struct HttpTarget(Arc<dyn Serve>);

impl fmt::Debug for HttpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpTarget")
    }
}

impl<U: HttpHost> From<HttpComponent<U>> for HttpTarget {
    fn from(component: HttpComponent<U>) -> Self {
        Self(component.0)
    }
}

impl From<AskActor> for HttpTarget {
    fn from(actor: AskActor) -> Self {
        Self(actor.0)
    }
}

/// Answers requests by components and actors, as a [`tower_service::Service`]: in [`HttpServer`](crate::HttpServer), or in an
/// embedder's own program. It never fails. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HttpService(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Those that are tried first come first.
    routes: Vec<(Route, HttpTarget)>,
    head: HeadLimits,
    access: Access,
}

/// A service in the making.
#[derive(Debug, Default)]
pub struct HttpServiceBuilder {
    routes: Vec<(Route, HttpTarget)>,
    head: HeadLimits,
}

/// Two routes are the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("two routes are of {}{}", .0.host, .0.path)]
pub struct SameRoute(pub Route);

impl HttpServiceBuilder {
    /// Adds a route.
    #[must_use]
    pub fn route(mut self, route: Route, target: impl Into<HttpTarget>) -> Self {
        self.routes.push((route, target.into()));
        self
    }

    /// Adds several routes to one target.
    #[must_use]
    pub fn routes(mut self, routes: impl IntoIterator<Item = Route>, target: impl Into<HttpTarget>) -> Self {
        let target = target.into();
        self.routes.extend(routes.into_iter().map(|route| (route, target.clone())));
        self
    }

    /// With these limits of the heads of requests.
    #[must_use]
    pub fn head(mut self, limits: HeadLimits) -> Self {
        self.head = limits;
        self
    }

    /// The service.
    ///
    /// # Errors
    ///
    /// [`SameRoute`].
    pub fn build(mut self) -> Result<HttpService, SameRoute> {
        self.routes.sort_by_key(|(route, _)| std::cmp::Reverse(route.rank()));
        for (at, (route, _)) in self.routes.iter().enumerate() {
            if self.routes[at + 1..].iter().any(|(other, _)| other == route) {
                return Err(SameRoute(route.clone()));
            }
        }
        Ok(HttpService(Arc::new(Inner { routes: self.routes, head: self.head, access: Access::default() })))
    }
}

impl HttpService {
    /// A service without routes.
    pub fn builder() -> HttpServiceBuilder {
        HttpServiceBuilder::default()
    }

    pub(crate) fn head(&self) -> &HeadLimits {
        &self.0.head
    }

    fn answer<B>(&self, request: Request<B>) -> Result<Answer, Refused>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let request = Checked::new(request, &self.0.head)?;
        let (host, path) = (&*request.host, request.parts.uri.path());
        let found = self.0.routes.iter().find(|(route, _)| route.matches(host, path));
        let (_, HttpTarget(target)) = found.ok_or(Refused::NoRoute)?;
        Ok(Arc::clone(target).serve(request))
    }
}

impl<B> tower_service::Service<Request<B>> for HttpService
where
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<HttpBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<HttpBody>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let asked = Asked::new(&request);
        let answer = self.answer(request);
        let this = Arc::clone(&self.0);
        Box::pin(async move {
            let response = match answer {
                Ok(answer) => answer.await,
                Err(refused) => refused.answer(),
            };
            if let Some(asked) = asked {
                this.access.log(&asked, response.status());
            }
            Ok(response)
        })
    }
}
