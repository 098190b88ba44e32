package agent

import (
	"slices"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/status"
)

// fullReport is the report with what services ask for and do not get, which costs a walk over all of
// them: for people, not for every scrape.
func (a *Agent) fullReport() status.Report {
	r := a.report()
	for i := range r.Subsystems {
		s := &r.Subsystems[i]
		switch {
		case s.Name == "services":
			s.Notes = slices.Concat(s.Notes, a.services.notes())
		case s.Name == "overlay" && a.overlay.paths != nil:
			s.Notes = slices.Concat(s.Notes, a.overlay.paths.notes())
		case s.Name == "conntrack" || s.Name == "policy-flows" && a.services == nil:
			if alarm := nodeConnections.alarm(); alarm != "" {
				s.Notes = slices.Concat(s.Notes, []string{alarm})
			}
		}
	}
	return r
}

// report gathers the agent's state.
func (a *Agent) report() status.Report {
	told := a.told.Load() // before the loops are asked: what comes later must not count as programmed
	r := status.Report{Node: a.cfg.Node, Version: a.cfg.Version, Started: a.started, Source: a.cfg.source(),
		Current: a.store.Current(), Synced: a.store.HasSynced(), Revision: a.store.Rev(), Objects: map[string]int{},
		Found: a.found()}
	if a.policies == nil {
		r.Policies = a.store.Len(model.KindNetworkPolicy)
	} else {
		r.Audited = a.policies.Audited()
	}
	for _, k := range model.Kinds {
		r.Objects[string(k)] = a.store.Len(k)
	}
	for _, l := range a.loops {
		s := l.Status()
		if s.Ready && !s.Failing && !s.Pending {
			s.Revision = max(s.Revision, told) // nothing since then concerned it
		}
		r.Subsystems = append(r.Subsystems, s)
	}
	a.mu.Lock()
	r.Problems = append(r.Problems, a.problems...)
	a.mu.Unlock()
	return r
}
