package kubernetes

import (
	"time"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
)

// notifier is the transfer plugin: it tells those who copy a zone that it has changed (RFC 1996).
type notifier interface{ Notify(zone string) error }

// gather is how long changes are collected before they are told: a rollout is many in a row.
const gather = time.Second

// zones of one class, in lower case.
type announced struct {
	zones []string
	class names.ZoneClass
}

// announced returns our zones by class.
func (k *Kubernetes) announced() (out []announced) {
	for _, z := range k.cfg.zones {
		out = append(out, announced{[]string{z}, k.class(z)})
	}
	return out
}

// AnnounceExternal tells of each change of zones of external addresses, from when the server starts.
func (k *Kubernetes) AnnounceExternal(n any, zones []string) {
	if n, ok := n.(notifier); ok {
		k.whenLive = append(k.whenLive, func() { k.announce(n, []announced{{zones, names.ExternalZone}}) })
	}
}

// announce tells of each change, and once of the first state: who has a copy may have it from before a
// restart. It returns at once; the telling ends with the server.
func (k *Kubernetes) announce(n notifier, list []announced) {
	l := k.live.Load()
	changed := make(chan struct{}, 1)
	wake := func() {
		select {
		case changed <- struct{}{}:
		default: // it is told already
		}
	}
	cancel := l.lease.Store.Subscribe(func(uint64, []model.Change) { wake() })
	go func() {
		defer cancel()
		select {
		case <-l.lease.Store.Synced():
		case <-l.ctx.Done():
			return
		}
		wake()
		told := map[names.ZoneClass]uint32{}
		for {
			select {
			case <-changed:
			case <-l.ctx.Done():
				return
			}
			k.tell(n, list, told)
			pause := time.NewTimer(gather)
			select {
			case <-pause.C:
			case <-l.ctx.Done():
				pause.Stop()
				return
			}
		}
	}()
}

// tell notifies about the zones whose serial is not the one told last.
func (k *Kubernetes) tell(n notifier, list []announced, told map[names.ZoneClass]uint32) {
	now := map[names.ZoneClass]uint32{}
	for _, a := range list {
		now[a.class] = k.index().Serial(a.class)
		if last, ever := told[a.class]; ever && last == now[a.class] {
			continue
		}
		for _, zone := range a.zones {
			if err := n.Notify(zone); err != nil {
				logger.Warn("not every copy of a zone was told that it has changed", "zone", zone, "err", err)
			}
		}
	}
	for class, serial := range now {
		told[class] = serial
	}
}
