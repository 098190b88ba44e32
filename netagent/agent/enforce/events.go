package enforce

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/netagent/agent/api"
	"github.com/braidnet/braid/netagent/policy"
)

const (
	// eventsAgain is when a fault that lasts is told again: the API server keeps events for an hour.
	eventsAgain = 50 * time.Minute
	// eventsRetry is the pause after the API server could not be asked.
	eventsRetry = 30 * time.Second
)

// eventWriter writes Events about policies that are not in force as they are written, for those who wrote them.
// All nodes give the same Event the same name, so the API server keeps one.
type eventWriter struct {
	log  *slog.Logger
	node string
	api  *api.Client
	wake chan struct{}

	mu     sync.Mutex
	faults map[model.Key]policy.Fault

	told map[model.Key]toldFault // the loop's own
	said bool                    // that the API server cannot be asked
}

type toldFault struct {
	policy.Fault
	at time.Time
}

func newEventWriter(log *slog.Logger, node string, c *api.Client) *eventWriter {
	return &eventWriter{log: log, node: node, api: c, wake: make(chan struct{}, 1), told: map[model.Key]toldFault{}}
}

// set says what is not in force now.
func (e *eventWriter) set(list []policy.Fault) {
	e.mu.Lock()
	e.faults = map[model.Key]policy.Fault{}
	for _, f := range list {
		e.faults[f.Policy.Key] = f
	}
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// run writes Events until ctx ends. That it cannot is logged, and harms nothing else.
func (e *eventWriter) run(ctx context.Context) {
	for {
		pause := eventsAgain
		if err := e.tell(ctx, time.Now()); err == nil {
			e.said = false
		} else if ctx.Err() == nil {
			if pause = eventsRetry; !e.said {
				e.log.Warn("no Event can be written about policies that are not in force; status and metrics have them", "err", err)
				e.said = true
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-e.wake:
		case <-time.After(pause):
		}
	}
}

// tell writes what was not told.
func (e *eventWriter) tell(ctx context.Context, now time.Time) error {
	e.mu.Lock()
	faults := e.faults
	e.mu.Unlock()
	for k, f := range faults {
		if was := e.told[k]; was.Fault == f && now.Sub(was.at) < eventsAgain {
			continue
		}
		reason := "PartlyEnforced"
		if f.Closed {
			reason = "NotEnforced"
		}
		if err := e.write(ctx, f, corev1.EventTypeWarning, reason, f.String(), now); err != nil {
			return err
		}
		e.told[k] = toldFault{f, now}
	}
	for k, f := range e.told {
		if _, still := faults[k]; still {
			continue
		}
		if err := e.write(ctx, f.Fault, corev1.EventTypeNormal, "Enforced", fmt.Sprintf("policy %s is in force as it is written, or gone", k), now); err != nil {
			return err
		}
		delete(e.told, k)
	}
	return nil
}

func (e *eventWriter) write(ctx context.Context, f policy.Fault, kind, reason, message string, now time.Time) error {
	digest := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %d", f.UID, reason, message, now.Unix()/3600))
	k := f.Policy.Key
	event := corev1.Event{
		TypeMeta:       metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta:     metav1.ObjectMeta{Namespace: k.Namespace, Name: fmt.Sprintf("%s.%x", k.Name[:min(len(k.Name), 200)], digest[:8])},
		InvolvedObject: corev1.ObjectReference{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: k.Namespace, Name: k.Name, UID: types.UID(f.UID)},
		Type:           kind, Reason: reason, Message: message[:min(len(message), 1000)],
		Source:         corev1.EventSource{Component: "netagent", Host: e.node},
		FirstTimestamp: metav1.NewTime(now), LastTimestamp: metav1.NewTime(now), Count: 1,
	}
	body, err := json.Marshal(event)
	if err != nil {
		return err
	}
	_, err = e.api.Ask(ctx, http.MethodPost, "api/v1/namespaces/"+k.Namespace+"/events", "application/json", body)
	var refused *api.Error
	switch {
	case errors.As(err, &refused) && refused.Code == http.StatusConflict:
		return nil // another node has told it
	case errors.As(err, &refused) && (refused.Code == http.StatusNotFound):
		return nil // its namespace is gone
	case err != nil:
		return fmt.Errorf("write an Event about policy %s: %w", k, err)
	}
	return nil
}
