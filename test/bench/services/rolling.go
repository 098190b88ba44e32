package main

import (
	"errors"
	"net/netip"
	"time"

	"github.com/braidnet/braid/test/bench/bulkapi"
)

// rolled is what a rolling update at one rate showed.
type rolled struct {
	packet []time.Duration // event to first packet, of those changes that were followed
	behind time.Duration   // from the last change until it was in force
	cpu    time.Duration   // for 1,000 changes
	late   bool            // a change that was followed took longer than the limit
}

// followed is a change to be found by packets.
type followed struct {
	event time.Time
	at    netip.Addr
	pod   netip.Addr
}

// rolling replaces endpoints of one service after the other, rate times a second. One change at a time
// is followed until a packet finds it.
func (r *run) rolling(rate int) (out rolled, err error) {
	if err := r.settle(); err != nil {
		return out, err
	}
	before, err := r.proc.CPU()
	if err != nil {
		return out, err
	}
	follow, end := make(chan followed), make(chan error)
	go func() {
		var err error
		for f := range follow {
			came, ferr := r.await(f.at, r.limits.cold, by(f.pod))
			switch {
			case errors.Is(ferr, errLimit):
				out.late = true
			case ferr != nil:
				err = ferr
			default:
				out.packet = append(out.packet, came.Sub(f.event))
			}
		}
		end <- err
	}()
	last, events, err := r.changeAt(rate, follow)
	close(follow)
	if err = errors.Join(err, <-end); err != nil {
		return out, err
	}
	came, err := r.await(last.at, r.limits.cold, by(last.pod))
	if errors.Is(err, errLimit) {
		out.late, err = true, nil
	}
	if err != nil {
		return out, err
	}
	out.behind = came.Sub(last.event)
	if err := r.settle(); err != nil {
		return out, err
	}
	after, err := r.proc.CPU()
	out.cpu = (after - before) * 1000 / time.Duration(events)
	return out, err
}

// changeAt makes the changes and offers each to follow. It returns the last one, and how many there were.
func (r *run) changeAt(rate int, follow chan<- followed) (last followed, events int, err error) {
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	first := r.random.IntN(r.cluster.services)
	for begin := time.Now(); time.Since(begin) < r.limits.rolling; events++ {
		<-tick.C
		i := (first + events) % r.cluster.services
		last = followed{event: time.Now(), at: vip(i)}
		if last.pod, err = r.cluster.change(i); err != nil {
			return last, events, err
		}
		select {
		case follow <- last:
		default: // the one before is not found yet
		}
	}
	return last, events, nil
}

// nodeLoss gives one in a hundred endpoints to a new pod, all at once, as when a node was lost and its
// pods run elsewhere. It returns how long it took until the first, middle and last of them were reached.
func (r *run) nodeLoss() (time.Duration, error) {
	count := max(3, min(r.cluster.services, r.cluster.services*r.cluster.endpoints/100))
	var changed []bulkapi.Object
	var list []followed
	for n := range count {
		i := n * r.cluster.services / count
		o, pod := r.cluster.changed(i)
		changed, list = append(changed, o), append(list, followed{at: vip(i), pod: pod})
	}
	event := time.Now()
	if err := r.cluster.api.Put(changed...); err != nil {
		return 0, err
	}
	var last time.Time
	for _, n := range []int{count - 1, 0, count / 2} {
		came, err := r.await(list[n].at, r.limits.cold-time.Since(event), by(list[n].pod))
		if err != nil {
			return 0, err
		}
		last = came
	}
	return last.Sub(event), nil
}
