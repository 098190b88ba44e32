package service

import "github.com/braidnet/braid/internal/model"

// Of lists, as of the last Flush and in the order of the Service's ports, the frontends that one Service has. Those that
// another Service holds are not among them; Notes says so.
func (p *Planner) Of(svc model.Key) (list []Frontend) {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	for _, f := range p.out.plans[svc].frontends {
		if p.out.told[slotOf(f.Key)] == f {
			list = append(list, *f)
		}
	}
	return list
}
