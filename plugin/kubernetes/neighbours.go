package kubernetes

import (
	"net/netip"

	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/names"
)

// What follows is for k8s_external, which answers from the same state under other names.

// Index returns the state that answers are made of, or nil before the server has started.
func (k *Kubernetes) Index() *names.Index {
	if k.live.Load() == nil {
		return nil
	}
	return k.index()
}

// Exposed reports whether the names of a namespace are served.
func (k *Kubernetes) Exposed(ns string) bool { return k.exposed(ns) }

// Pointed reports whether PTR records may lead into a namespace.
func (k *Kubernetes) Pointed(ns string) bool { return k.pointed(ns) }

// View returns how the stanza wants to see the cluster.
func (k *Kubernetes) View() names.View { return k.cfg.view }

// TTL returns the TTL of the stanza's records, in seconds.
func (k *Kubernetes) TTL() uint32 { return k.cfg.ttl }

// Local returns the addresses that the server is bound to.
func (k *Kubernetes) Local() []netip.Addr { return k.live.Load().local }

// OwnServices returns the services that have this server among their endpoints.
func (k *Kubernetes) OwnServices() []names.Owner { return k.ownServices(k.Local()) }

// NotSynced marks an answer as one that cannot be given before the first state is complete.
func NotSynced(m *dns.Msg, r *dns.Msg) {
	reply{rcode: dns.RcodeServerFailure, explain: notSynced, code: dns.ExtendedErrorCodeNotReady}.finish(m, r)
}
