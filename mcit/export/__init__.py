from mcit.core.callable import callable_package

callable_package(__name__)
