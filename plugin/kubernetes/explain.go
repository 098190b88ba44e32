package kubernetes

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
)

// whyLabel in front of a name asks for a TXT record that tells about it.
const whyLabel = "why."

// explains reports whether the client that asks is told why an answer is as it is.
func (k *Kubernetes) explains(state request.Request) bool {
	if len(k.cfg.explain) == 0 || state.W == nil {
		return false
	}
	a, err := netip.ParseAddr(state.IP())
	if err != nil {
		return false
	}
	a = a.Unmap().WithZone("")
	return slices.ContainsFunc(k.cfg.explain, func(p netip.Prefix) bool { return p.Contains(a) })
}

// whyRecord answers "TXT why.NAME". It depends on the moment, so nobody may keep it.
func (k *Kubernetes) whyRecord(q question) reply {
	about := q
	about.name, about.typ = q.name[len(whyLabel):], dns.TypeA
	text := k.why(about)
	var parts []string
	for len(text) > 255 { // a character-string holds no more (RFC 1035 section 3.3)
		parts, text = append(parts, text[:255]), text[255:]
	}
	return reply{exists: true, fixed: true, records: []dns.RR{&dns.TXT{Hdr: header(q.name, dns.TypeTXT, 0), Txt: append(parts, text)}}}
}

// why says in one line what is known of a name, and why it has no record of the type asked for if it
// has none.
func (k *Kubernetes) why(q question) string {
	rel := strings.TrimPrefix(q.relative(), whyLabel)
	n, ok := k.grammar(q.zone).Parse(rel)
	switch {
	case dnsutil.IsReverse(strings.ToLower(q.name)) > 0:
		return k.whyReverse(q)
	case !ok:
		return fmt.Sprintf("no name of a cluster has this form: in %s names end in SERVICE.NAMESPACE.svc or ADDRESS.NAMESPACE.pod", q.zone)
	case n.Kind != names.Svc && n.Kind != names.Pod:
		return fmt.Sprintf("this name of the zone itself has no %s record", dns.Type(q.typ))
	case !k.exposed(n.Namespace):
		return k.whyNamespace(n.Namespace)
	case n.Object == "":
		return fmt.Sprintf("namespace %s exists, and only its services and pods have records", n.Namespace)
	case n.Kind == names.Pod:
		return k.whyPod(n)
	}
	return k.whyService(q, n)
}

func (k *Kubernetes) whyReverse(q question) string {
	addr, ok := names.ParseReverse(strings.ToLower(q.name))
	if !ok {
		return "this is not the reverse name of a whole address"
	}
	return fmt.Sprintf("%s is no cluster IP of a service and no ready endpoint of one", addr)
}

func (k *Kubernetes) whyNamespace(ns string) string {
	switch x := k.index(); {
	case !k.listed(ns):
		return fmt.Sprintf("namespace %s is not among those that the option namespaces serves", ns)
	case k.cfg.source.NamespaceLabels != "":
		return fmt.Sprintf("there is no namespace %s with the labels %s%s", ns, k.cfg.source.NamespaceLabels, meant(ns, x.NamespaceNames()))
	default:
		return fmt.Sprintf("there is no namespace %s%s", ns, meant(ns, x.NamespaceNames()))
	}
}

func (k *Kubernetes) whyPod(n names.Name) string {
	addr, ok := names.ParseDashed(n.Object)
	switch {
	case k.cfg.pods == podsDisabled:
		return "names of pods are not served: the option pods is disabled"
	case !ok:
		return fmt.Sprintf("%s is no address written with dashes", n.Object)
	case k.cfg.pods == podsVerified && !k.index().HasPod(n.Namespace, addr):
		return fmt.Sprintf("namespace %s has no pod with the address %s", n.Namespace, addr)
	}
	return fmt.Sprintf("pod address %s in namespace %s", addr, n.Namespace)
}

func (k *Kubernetes) whyService(q question, n names.Name) string {
	x := k.index()
	key := model.Key{Namespace: n.Namespace, Name: n.Object}
	if k.class(q.zone) == names.SetZone {
		if a := k.resolve(q.zone, names.Name{Namespace: n.Namespace, Object: n.Object}, false); !a.Exists {
			return fmt.Sprintf("the cluster set has no service %s with an endpoint", key)
		}
		return fmt.Sprintf("service %s of the cluster set has no such record here, revision %d", key, x.Rev())
	}
	s := x.Service(key)
	if s == nil {
		return fmt.Sprintf("namespace %s has no service %s%s", n.Namespace, n.Object, meant(n.Object, x.ServiceNames(n.Namespace)))
	}
	if s.Type == model.ExternalName {
		return fmt.Sprintf("service %s is an alias of %s, revision %d", key, s.ExternalName, x.Rev())
	}
	ready, all := x.Endpoints(key)
	out := []string{fmt.Sprintf("service %s: %d of %d endpoints ready", key, ready, all)}
	if s.Headless {
		out = append(out, "headless")
	} else {
		for _, a := range s.ClusterIPs {
			out = append(out, "cluster IP "+a.String())
		}
	}
	ports := x.Ports(s)
	switch {
	case n.Port != "" || n.Protocol != "":
		asked := "_" + n.Port + "._" + n.Protocol
		if !slices.Contains(ports, asked) {
			out = append(out, fmt.Sprintf("no port %s%s", asked, meant(asked, ports)))
		}
	case n.Endpoint != "":
		labels := x.Labels(s, k.cfg.view)
		if !slices.Contains(labels, n.Endpoint) {
			out = append(out, fmt.Sprintf("no ready endpoint is called %s%s", n.Endpoint, meant(n.Endpoint, labels)))
		}
	}
	if len(ports) > 0 {
		out = append(out, "named ports "+strings.Join(ports, " "))
	}
	return fmt.Sprintf("%s, revision %d", strings.Join(out, ", "), x.Rev())
}

// meant asks whether another word was meant, if one is near.
func meant(word string, list []string) string {
	if near := names.Nearest(word, list); near != "" {
		return "; did you mean " + near + "?"
	}
	return ""
}
