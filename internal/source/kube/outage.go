package kube

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	// maxPause is the longest pause before the API server is asked whether it is back, but for as much again by chance.
	// A reflector's own grows to a minute, and every kind has one of its own.
	maxPause = 1500 * time.Millisecond
	// askWithin is how long it may take to answer that.
	askWithin = 5 * time.Second
	// unready is how often in a row a server may say that it is not ready before it is tried all the same.
	unready = 10
)

// outage is the time in which the API server does not answer. All kinds wait for its end together: one question is
// asked for all of them, and all go on at the same time, so that what was changed meanwhile comes in together.
type outage struct {
	retry time.Duration                   // the first pause
	ready func(ctx context.Context) error // asks whether the server is back
	over  func()                          // called at the end of one that lasted, before anybody goes on

	mu  sync.Mutex
	end chan struct{} // closed at the end of the one that goes on; nil = none does
}

// ready asks the API server whether it is ready for requests.
func (c clients) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	_, err := c[corev1.SchemeGroupVersion].Get().AbsPath("/readyz").MaxRetries(0).DoRaw(ctx)
	return err
}

// absent reports whether an error is due to a server that is not there: there was no answer, or one of something that
// stands before it, such as a load balancer.
func absent(err error) bool {
	if err == nil {
		return false
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return true
	}
	switch status.Status().Code {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// wait returns when the server answers again, or ctx is done. end is that of everything.
func (o *outage) wait(ctx, end context.Context) {
	o.mu.Lock()
	if o.end == nil {
		o.end = make(chan struct{})
		go o.last(end)
	}
	over := o.end
	o.mu.Unlock()
	select {
	case <-over:
	case <-ctx.Done():
	}
}

// last asks until the outage is over.
func (o *outage) last(ctx context.Context) {
	begun, pause, refused := 1, o.retry, 0
	for ; waitFor(ctx, pause+rand.N(pause)); begun++ {
		err := o.ready(ctx)
		var status apierrors.APIStatus
		if errors.As(err, &status) && status.Status().Code >= http.StatusInternalServerError {
			refused++
		} else {
			refused = 0
		}
		// Who may not ask has been answered, too.
		if !absent(err) && refused == 0 || refused > unready {
			break
		}
		pause = min(2*pause, max(maxPause, o.retry))
	}
	if begun > 1 && ctx.Err() == nil {
		o.over()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	close(o.end)
	o.end = nil
}
