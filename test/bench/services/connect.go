package main

import (
	"net/netip"
	"time"

	"github.com/braidnet/braid/test/bench/rig"
)

// connects is how many connections to each target are timed, in turn.
const connects = 1000

// latencies times how long connections take to be established: to a pod in a world without any rules, and
// through the first, the middle and the last service. A pod of the subject's own world is no measure: packets to it pass
// the same rules. They are made in turn, so that what else the machine does meets all alike.
func (r *run) latencies() (bare []time.Duration, through [3][]time.Duration, err error) {
	free, err := newWorld()
	if err != nil {
		return nil, through, err
	}
	defer free.close()
	n := r.cluster.services
	targets := []struct {
		in   *world
		to   netip.Addr
		port uint16
		into *[]time.Duration
	}{
		{free, directTarget, podPort, &bare},
		{r.world, vip(0), servicePort, &through[0]}, {r.world, vip(n / 2), servicePort, &through[1]}, {r.world, vip(n - 1), servicePort, &through[2]},
	}
	const warm, patience = 20, time.Minute
	for i := range connects + warm {
		for _, t := range targets {
			var took time.Duration
			err := t.in.client.Do(func() (err error) {
				took, err = rig.Connect(netip.IPv4Unspecified(), netip.AddrPortFrom(t.to, t.port), patience)
				return err
			})
			if err != nil {
				return nil, through, err
			}
			if i >= warm {
				*t.into = append(*t.into, took)
			}
		}
	}
	return bare, through, nil
}
