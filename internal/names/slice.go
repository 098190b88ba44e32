package names

import (
	"net/netip"
	"strings"
	"sync"
	"unique"

	"github.com/braidnet/braid/internal/model"
)

// Endpoint is one ready address of a service.
type Endpoint struct {
	Addr     netip.Addr
	Hostname string // as the slice gives it, often empty
	Pod      string // name of the object behind it, empty when it would be no valid label
	Node     string
	Zone     string // topology zone
}

// maxLabel is the longest label a DNS name can have (RFC 1035 section 2.3.4).
const maxLabel = 63

// Label returns the label of the endpoint in front of its service's name: its hostname, else (with
// podNames) the name of its pod, else its address with dashes.
func (e Endpoint) Label(podNames bool) string {
	if e.Hostname != "" {
		return e.Hostname
	}
	if podNames && e.Pod != "" {
		return e.Pod
	}
	return DashedAddr(e.Addr)
}

// slice is what the index keeps of an EndpointSlice: its ready addresses. It is immutable but for
// the name tables, which are made at their first use because most services never need them.
type slice struct {
	key       model.Key
	service   model.Key // zero when the slice belongs to no service
	imported  model.Key // zero when it belongs to no service of a cluster set
	cluster   string    // of that set
	ports     []model.EndpointPort
	endpoints []Endpoint
	unready   int           // addresses that are not among endpoints
	labels    [2]labelTable // by podNames
}

type labelTable struct {
	once sync.Once
	at   map[string][]Endpoint // by lower-case label
}

func newSlice(s *model.EndpointSlice) *slice {
	out := &slice{key: s.Key, service: s.Service, imported: s.Import, cluster: s.Cluster, ports: s.Ports}
	for _, e := range s.Endpoints {
		if !e.Ready {
			out.unready += len(e.Addrs)
			continue
		}
		pod := e.Target.Name
		if len(pod) > maxLabel {
			pod = ""
		}
		// Few nodes and zones have many endpoints: one copy of each name is enough.
		node, zone := unique.Make(e.Node).Value(), unique.Make(e.Zone).Value()
		for _, a := range e.Addrs {
			out.endpoints = append(out.endpoints, Endpoint{Addr: a, Hostname: e.Hostname, Pod: pod, Node: node, Zone: zone})
		}
	}
	return out
}

// chosen returns the endpoints with a lower-case label, or all of them when it is empty.
func (s *slice) chosen(label string, podNames bool) []Endpoint {
	if label == "" {
		return s.endpoints
	}
	t := &s.labels[0]
	if podNames {
		t = &s.labels[1]
	}
	t.once.Do(func() {
		t.at = make(map[string][]Endpoint, len(s.endpoints))
		for _, e := range s.endpoints {
			l := strings.ToLower(e.Label(podNames))
			t.at[l] = append(t.at[l], e)
		}
	})
	return t.at[label]
}
