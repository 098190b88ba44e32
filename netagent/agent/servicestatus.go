package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/service"
	"github.com/braidnet/braid/netagent/status"
)

// answerServices says what is in force of the Service that is named, or in short of each.
func (a *Agent) answerServices(w http.ResponseWriter, req *http.Request) {
	if a.services == nil {
		http.Error(w, "service mode none: this agent translates no services", http.StatusNotFound)
		return
	}
	out := status.Services{Node: a.cfg.Node, Revision: a.store.Rev(), Services: map[string]status.Service{}}
	all, name := a.ledger.programmed(), req.FormValue("name")
	if name != "" {
		one, known := all[name]
		if !known {
			http.Error(w, unknownService(name, a.cfg.Node), http.StatusNotFound)
			return
		}
		out.Services[name] = a.services.inFull(keyOf(name), one)
	} else {
		for name, s := range all {
			s.Counts = countFrontends(a.services.planner.Of(keyOf(name)))
			out.Services[name] = s
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

func unknownService(name, node string) string {
	if !strings.Contains(name, "/") {
		return fmt.Sprintf("service %q: give it as NAMESPACE/NAME", name)
	}
	return fmt.Sprintf("service %s: the agent of node %s knows of none by that name", name, node)
}

func keyOf(name string) model.Key {
	namespace, name, _ := strings.Cut(name, "/")
	return model.Key{Namespace: namespace, Name: name}
}

// countFrontends sums up what a Service has.
func countFrontends(list []service.Frontend) *status.Counts {
	c := status.Counts{Frontends: len(list)}
	seen := map[netip.AddrPort]struct{}{}
	for i := range list {
		f := &list[i]
		for _, backends := range [][]service.Backend{f.Backends, f.Inside} {
			for _, b := range backends {
				seen[b.AddrPort] = struct{}{}
			}
		}
		if len(f.Backends) == 0 {
			if c.Empty++; c.Why == "" {
				c.Why = f.Why
			}
		}
	}
	c.Backends = len(seen)
	return &c
}

// inFull adds to what is in force of a Service its frontends and notes.
func (s *services) inFull(svc model.Key, out status.Service) status.Service {
	var counts map[service.Key]status.Traffic
	if s.traffic != nil {
		var err error
		if counts, err = s.traffic.all(); err != nil {
			out.Notes = append(out.Notes, err.Error())
		}
	}
	for _, f := range s.planner.Of(svc) {
		front := frontStatus(&f)
		if n, counted := counts[f.Key]; counted {
			front.Traffic = &n
		}
		out.Frontends = append(out.Frontends, front)
	}
	for _, n := range s.planner.Notes() {
		if n.Origin.Key == svc {
			out.Notes = append(out.Notes, n.Field+": "+n.Text)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leftOut != nil {
		for _, n := range s.leftOut.notes {
			if rest, is := strings.CutPrefix(n, "service "+svc.String()); is && (rest[0] == ':' || rest[0] == ' ') {
				out.Notes = append(out.Notes, n)
			}
		}
	}
	return out
}

func frontStatus(f *service.Frontend) status.Front {
	out := status.Front{At: f.Key.String(), Kind: f.Kind.String(), Port: f.PortName, Why: f.Why, Filtered: f.Filtered,
		Backends: backendStatus(f.Backends), Inside: backendStatus(f.Inside)}
	if len(f.Backends) == 0 {
		out.Else = map[service.Empty]string{service.Reject: "refused", service.Drop: "dropped"}[f.Empty]
	}
	if f.Affinity > 0 {
		out.Affinity = f.Affinity.String()
	}
	for _, p := range f.Sources {
		out.Sources = append(out.Sources, p.String())
	}
	return out
}

func backendStatus(list []service.Backend) []status.Backend {
	out := make([]status.Backend, len(list))
	for i, b := range list {
		out[i] = status.Backend{At: b.AddrPort.String(), Local: b.Local}
	}
	return out
}
