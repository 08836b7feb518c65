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
use parking_lot::RwLock;

use self::access::{Access, Asked};
pub use self::route::{InvalidPathPrefix, PathPrefix, Route};
use crate::{
    answer::{HttpBody, Refused},
    ask::{Ask, AskActor},
    component::{Component, HttpComponent},
    events::Unserved,
    host::HttpHost,
    request::{Checked, HeadLimits},
};

type Answer = Pin<Box<dyn Future<Output = Result<Response<HttpBody>, Infallible>> + Send>>;

/// Whoever answers requests.
trait Serve: Send + Sync {
    fn serve(self: Arc<Self>, request: Checked) -> Answer;
}

impl<U: HttpHost> Serve for Component<U> {
    fn serve(self: Arc<Self>, request: Checked) -> Answer {
        Box::pin(async { Ok(self.serve(request).await) })
    }
}

impl Serve for Ask {
    fn serve(self: Arc<Self>, request: Checked) -> Answer {
        Box::pin(async { Ok(self.serve(request).await) })
    }
}

/// Where a route leads: an [`HttpComponent`] or an [`AskActor`]. Cheap to clone.
#[derive(Clone)]
pub struct HttpTarget(Arc<dyn Serve>);

impl HttpTarget {
    /// Whether both are the same component or actor, and not only made of the same.
    fn is(&self, other: &Self) -> bool {
        // Of what is behind it, there may be several tables of functions.
        std::ptr::addr_eq(Arc::as_ptr(&self.0), Arc::as_ptr(&other.0))
    }
}

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
    routes: RwLock<Routes>,
    head: HeadLimits,
    access: Access,
    unserved: Unserved,
}

/// Those that are tried first come first.
#[derive(Debug)]
struct Routes(Vec<(Route, HttpTarget)>);

impl Routes {
    fn new(mut routes: Vec<(Route, HttpTarget)>) -> Result<Self, SameRoute> {
        routes.sort_by_key(|(route, _)| std::cmp::Reverse(route.rank()));
        for (at, (route, _)) in routes.iter().enumerate() {
            if routes[at + 1..].iter().any(|(other, _)| other == route) {
                return Err(SameRoute(route.clone()));
            }
        }
        Ok(Self(routes))
    }
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
    pub fn build(self) -> Result<HttpService, SameRoute> {
        let routes = RwLock::new(Routes::new(self.routes)?);
        let (access, unserved) = (Access::default(), Unserved::default());
        Ok(HttpService(Arc::new(Inner { routes, head: self.head, access, unserved })))
    }
}

impl HttpService {
    /// A service without routes.
    pub fn builder() -> HttpServiceBuilder {
        HttpServiceBuilder::default()
    }

    /// Leads all routes of one target to another from now on, without touching connections: a new version of a component takes
    /// the place of the old one. Requests in hand end where they began. Says how many routes there were.
    ///
    /// ```
    /// # use airssys_wasm_http::{HttpComponent, HttpService, Route};
    /// # fn upgrade(old: HttpComponent, new: HttpComponent) -> Result<(), Box<dyn std::error::Error>> {
    /// let service = HttpService::builder().route(Route::path("/cart")?, old.clone()).build()?;
    /// // ... it serves ...
    /// assert_eq!(service.replace(old, new), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn replace(&self, old: impl Into<HttpTarget>, new: impl Into<HttpTarget>) -> usize {
        let (old, new) = (old.into(), new.into());
        let mut routes = self.0.routes.write();
        let replaced = routes.0.iter_mut().filter(|(_, target)| target.is(&old));
        // `old` is not dropped under the lock: it is held here.
        replaced.map(|(_, target)| *target = new.clone()).count()
    }

    /// Takes these routes in place of all that there are, at once and without touching connections. Requests in hand end where
    /// they began. The limits of heads stay as they are.
    ///
    /// # Errors
    ///
    /// [`SameRoute`]; then nothing is changed.
    pub fn set_routes(&self, routes: HttpServiceBuilder) -> Result<(), SameRoute> {
        let routes = Routes::new(routes.routes)?;
        let old = std::mem::replace(&mut *self.0.routes.write(), routes);
        // Outside of the lock: sandboxes take a while to drop.
        drop(old);
        Ok(())
    }

    pub(crate) fn unserved(&self) -> &Unserved {
        &self.0.unserved
    }

    pub(crate) fn head(&self) -> &HeadLimits {
        &self.0.head
    }

    fn answer<B>(&self, request: Request<B>) -> Result<Answer, Refused>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let request = Checked::new(request, &self.0.head)?;
        let (host, path) = (request.authority.host(), request.parts.uri.path());
        let target = {
            let routes = self.0.routes.read();
            let found = routes.0.iter().find(|(route, _)| route.matches(host, path));
            let (_, HttpTarget(target)) = found.ok_or(Refused::NoRoute)?;
            Arc::clone(target)
        };
        Ok(target.serve(request))
    }
}

impl<B> tower_service::Service<Request<B>> for HttpService
where
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<HttpBody>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let asked = Asked::new(&request);
        let answer = self.answer(request).unwrap_or_else(|refused| {
            let refusal = self.0.unserved.refuse(refused);
            Box::pin(std::future::ready(Ok(refusal)))
        });
        let Some(asked) = asked else { return answer };
        let this = Arc::clone(&self.0);
        Box::pin(async move {
            let response = answer.await?;
            this.access.log(&asked, response.status());
            Ok(response)
        })
    }
}
