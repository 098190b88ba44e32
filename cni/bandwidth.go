package main

import (
	"math"

	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/containernetworking/cni/pkg/skel"
)

// rawBandwidth has the keys of the bandwidth plugin: bits per second, and
// bits. What comes to the pod is "ingress".
type rawBandwidth struct {
	IngressRate  uint64 `json:"ingressRate"`
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"`
	EgressBurst  uint64 `json:"egressBurst"`
}

const (
	// anyBurst and what is above is what runtimes say when nobody has asked
	// for a burst. Taken at its word no limit would be felt for a long time.
	anyBurst = math.MaxInt32
	// leastBurst lets segments pass that the kernel has not split yet, bits.
	leastBurst = 128 << 10 * 8
	// burstPart of what passes in a second may pass at once.
	burstPart = 10
)

// rates checks the limits.
func (raw rawBandwidth) rates() (toPod, fromPod link.Rate, err error) {
	for _, d := range []struct {
		key         string
		rate, burst uint64
		into        *link.Rate
	}{{"ingress", raw.IngressRate, raw.IngressBurst, &toPod}, {"egress", raw.EgressRate, raw.EgressBurst, &fromPod}} {
		switch {
		case d.rate == 0 && d.burst != 0 && d.burst < anyBurst:
			return toPod, fromPod, invalid("runtimeConfig.bandwidth.%sBurst is %d without a rate: expected %sRate, bits per second", d.key, d.burst, d.key)
		case d.rate == 0:
			continue
		case d.rate < 1000:
			return toPod, fromPod, invalid("runtimeConfig.bandwidth.%sRate is %d: expected bits per second, 1000 at least", d.key, d.rate)
		case d.burst == 0 || d.burst >= anyBurst:
			d.burst = max(leastBurst, d.rate/burstPart)
		case d.burst < maxMTU*8:
			return toPod, fromPod, invalid("runtimeConfig.bandwidth.%sBurst is %d: expected bits, %d at least, or the key left out: less would stop large packets",
				d.key, d.burst, maxMTU*8)
		}
		*d.into = link.Rate{Bits: d.rate, Burst: d.burst}
	}
	return toPod, fromPod, nil
}

// shape bounds what the pod sends and receives.
func shape(back *undo, conf *config, args *skel.CmdArgs, node *link.Handle) error {
	if conf.ToPod == (link.Rate{}) && conf.FromPod == (link.Rate{}) {
		return nil
	}
	s := link.Shaping{
		Host: link.HostVethName(args.ContainerID, args.IfName), Ifb: link.IfbName(args.ContainerID, args.IfName),
		MTU: conf.MTU, ToPod: conf.ToPod, FromPod: conf.FromPod,
	}
	back.push(func() error { return link.DeleteIfb(node, s.Ifb) })
	return link.Shape(node, s)
}

func checkShape(d *diffs, conf *config, args *skel.CmdArgs, node *link.Handle) error {
	for _, want := range []struct {
		dev  string
		rate link.Rate
	}{{link.HostVethName(args.ContainerID, args.IfName), conf.ToPod}, {link.IfbName(args.ContainerID, args.IfName), conf.FromPod}} {
		if want.rate.Bits == 0 {
			continue // a limit there is another plugin's of the chain, and its to check
		}
		have, err := link.Shaped(node, want.dev)
		if err != nil {
			return err
		}
		if have != want.rate.Bits/8*8 {
			d.addf("what leaves by %s is limited to %d bit/s, expected %d", want.dev, have, want.rate.Bits)
		}
	}
	return nil
}
