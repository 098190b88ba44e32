package names

import (
	"net/netip"
	"strings"
	"time"
	"unique"

	"github.com/braidnet/braid/internal/model"
)

// Endpoint is one ready address of a service. There are a hundred thousand in a large cluster, so it
// holds no more than answers need.
type Endpoint struct {
	Addr     netip.Addr
	Hostname string // as the slice gives it, often empty
	Pod      string // name of the object behind it, empty when it would be no valid label
	place    unique.Handle[Place]
}

// Place is where an endpoint runs. Few places have many endpoints, which share one copy of it.
type Place struct{ Node, Zone string }

// Place returns where the endpoint runs, as far as its slice says.
func (e Endpoint) Place() Place {
	if e.place == (unique.Handle[Place]{}) {
		return Place{}
	}
	return e.place.Value()
}

// maxLabel is the longest label a DNS name can have (RFC 1035 section 2.3.4).
const maxLabel = 63

// Label returns the label of the endpoint in front of its service's name: its hostname, else (with
// podNames) the name of its pod, else its address with dashes.
func (e Endpoint) Label(podNames bool) string { return string(e.appendLabel(nil, podNames)) }

func (e *Endpoint) appendLabel(b []byte, podNames bool) []byte {
	if e.Hostname != "" {
		return append(b, e.Hostname...)
	}
	if podNames && e.Pod != "" {
		return append(b, e.Pod...)
	}
	return appendDashed(b, e.Addr)
}

// Slice is what answers need of an EndpointSlice. It is a model.Object, in place of the whole one in
// stores that only answers are made from.
type Slice struct {
	model.Origin
	Service    model.Key // zero when the slice belongs to no service
	Import     model.Key // zero when it belongs to no service of a cluster set
	Cluster    string    // of that set
	Ports      []model.EndpointPort
	Endpoints  []Endpoint
	Unready    int // addresses that are not among Endpoints
	LastChange time.Time
}

// SliceOf returns the Slice of an EndpointSlice in either form, or nil for anything else.
func SliceOf(o model.Object) *Slice {
	switch o := o.(type) {
	case *Slice:
		return o
	case *model.EndpointSlice:
		return compact(o)
	}
	return nil
}

func compact(s *model.EndpointSlice) *Slice {
	out := &Slice{Origin: s.Origin, Service: s.Service, Import: s.Import, Cluster: s.Cluster, Ports: s.Ports, LastChange: s.LastChange}
	ready := 0
	for _, e := range s.Endpoints {
		if e.Ready {
			ready += len(e.Addrs)
		}
	}
	out.Endpoints = make([]Endpoint, 0, ready)
	for _, e := range s.Endpoints {
		if !e.Ready {
			out.Unready += len(e.Addrs)
			continue
		}
		pod := e.Target.Name
		if len(pod) > maxLabel {
			pod = ""
		}
		place := unique.Make(Place{e.Node, e.Zone})
		for _, a := range e.Addrs {
			out.Endpoints = append(out.Endpoints, Endpoint{Addr: a, Hostname: e.Hostname, Pod: pod, place: place})
		}
	}
	return out
}

// slice is a Slice in the index. It is immutable.
type slice struct {
	*Slice
	id uint32 // by which addresses point to it
}

// matcher tells the endpoints with a lower-case label from others.
type matcher struct {
	label    string // "" is that of all
	podNames bool
	addr     netip.Addr // that the label stands for; not valid when it stands for none
}

func newMatcher(label string, podNames bool) matcher {
	m := matcher{label: label, podNames: podNames}
	// Most labels are names, and to find that out costs less than a parser's error.
	if n := strings.Count(label, "-"); n != 3 && n != 7 && !strings.Contains(label, "--") {
		return m
	}
	if a, ok := ParseDashed(label); ok {
		var b [64]byte
		if string(appendDashed(b[:0], a)) == label { // of all ways to write an address, labels use one
			m.addr = a
		}
	}
	return m
}

func (m *matcher) matches(e *Endpoint) bool {
	switch {
	case m.label == "":
		return true
	case e.Hostname != "":
		return strings.EqualFold(e.Hostname, m.label)
	case m.podNames && e.Pod != "":
		return strings.EqualFold(e.Pod, m.label)
	}
	return m.addr.IsValid() && e.Addr == m.addr
}
