package agent

import (
	"errors"
	"fmt"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/tun"
)

// userPath is the data path of overlay udp as it is at work; its path is nil while there is none. The
// device outlives it, and the agent: until the next agent opens it, what is routed there is lost.
type userPath struct {
	path  *tun.Path
	ends  desired.Relay
	index int // of the device; 0 = not known
}

// relay makes the wanted data path work, or none when want is nil, with the device when that is not there.
// When it fails, what belongs on the device is left alone. The error is of reading the devices.
func (o *podNetwork) relay(w *writer, want *desired.Relay) (err error) {
	defer func() { o.shown.Store(o.user.path) }()
	if want == nil {
		o.user.close()
		return nil
	}
	done, err := o.user.become(*want, w.table.Index(want.Dev))
	if i := slices.IndexFunc(w.table.Ours, func(d link.Device) bool { return d.Name == want.Dev && d.Kind == desired.KindTUN }); errors.Is(err, tun.ErrOther) && i >= 0 {
		// Somebody made it anew, with other attributes.
		if err = link.DeleteLink(w.h, w.table.Ours[i]); err == nil {
			w.changes = append(w.changes, fmt.Sprintf("deleted %s: other attributes are wanted", w.table.Ours[i]))
			done, err = o.user.become(*want, 0)
		}
	}
	w.changes = append(w.changes, done...)
	if err != nil {
		w.errs = append(w.errs, err)
		w.failed[want.Dev] = true
	}
	if len(done) == 0 {
		return nil
	}
	w.table, err = link.ReadTable(w.h)
	if err == nil {
		o.user.index = w.table.Index(want.Dev)
	}
	return err
}

// become opens the wanted path, or changes the one that is open. index is that of the device, 0 for none.
func (u *userPath) become(want desired.Relay, index int) (done []string, err error) {
	if u.path != nil {
		why := ""
		switch {
		case u.path.Err() != nil || u.index != index:
			why = "the device is gone"
		case !u.ends.SameEnds(want):
			why = "other ends are wanted"
		default:
			return nil, u.path.Set(want)
		}
		done = append(done, fmt.Sprintf("closed %s: %s", u.ends, why))
		u.close()
	}
	path, err := tun.Open(want, tun.Options{})
	if err != nil {
		return done, err
	}
	u.path, u.ends = path, want
	return append(done, fmt.Sprintf("opened %s, with %s: %s", want, path.Features(), want.Origin)), nil
}

// pathBroken reports that the data path that is wanted does not work.
func (o *podNetwork) pathBroken() bool {
	path := o.shown.Load()
	return path != nil && path.Err() != nil
}

func (u *userPath) close() {
	if u.path != nil {
		u.path.Close()
	}
	*u = userPath{}
}

var (
	descUDPPackets = prometheus.NewDesc("braid_overlay_udp_packets_total", "Packets of pods that overlay udp carried since its device was opened.", []string{"direction"}, nil)
	descUDPBytes   = prometheus.NewDesc("braid_overlay_udp_bytes_total", "The bytes of these packets.", []string{"direction"}, nil)
	descUDPDropped = prometheus.NewDesc("braid_overlay_udp_dropped_total", "Packets that were not carried, by reason.", []string{"reason"}, nil)
)

// collectUserPath tells the counters of the data path, when there is one.
func (o *podNetwork) collectUserPath(counter func(d *prometheus.Desc, v float64, labels ...string)) {
	path := o.shown.Load()
	if path == nil {
		return
	}
	s := path.Stats()
	counter(descUDPPackets, float64(s.Sent), "sent")
	counter(descUDPPackets, float64(s.Received), "received")
	counter(descUDPBytes, float64(s.SentBytes), "sent")
	counter(descUDPBytes, float64(s.ReceivedBytes), "received")
	for reason, n := range s.Dropped {
		counter(descUDPDropped, float64(n), reason)
	}
}
